"""`Problem`: a network, a loss of one example, and a fixed probe batch, as the user gives them.

The network is a function, or a framework's module that `problem.flax`, `equinox`, `haiku` or
`keras` converts to one. For parameters of a known structure a `Problem` is converted to a
`FlatProblem` (`problem.flat`).
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from rankmon._util.arrays import check_concrete, host_copies
from rankmon._util.distributed import gathered
from rankmon._util.globs import as_patterns
from rankmon._util.validate import as_flag
from rankmon.problem.checks import check_finite, check_some_numbers, check_weights, leading_axis
from rankmon.problem.constructors import check_options, constructor_of, how_to_state
from rankmon.problem.diagnosis import explained
from rankmon.problem.equinox import as_column, equinox_network
from rankmon.problem.equinox_keras import as_arrays, as_given
from rankmon.problem.flat import FlatProblem
from rankmon.problem.flatten import flat_problem
from rankmon.problem.flax import linen_apply, linen_unpack, nnx_network, plain
from rankmon.problem.float64 import lifted
from rankmon.problem.haiku import haiku_network
from rankmon.problem.keras import has_one_dtype, keras_network
from rankmon.problem.losses import LossFunction, as_loss
from rankmon.problem.pytree import Bundle, LeafSpec, leaf_specs

Apply = Callable[..., Any]


def check_problem(problem: Any, params: Any = None) -> None:
    """Refuse anything but a `Problem` as the first argument of a measurement.

    Raises:
      TypeError: for anything else; the message gives the correct code.
    """
    if isinstance(problem, Problem):
        return
    remedy = "build one from apply, loss, inputs and targets"
    if isinstance(params, Problem):
        remedy = "the problem comes first and the parameters second"
    elif (constructor := constructor_of(problem)) is not None:
        remedy = f"build one from the model and a probe batch: {constructor}"
    raise TypeError(f"expected a rankmon.Problem, got {type(problem).__name__}; {remedy}")


class Problem:
    """A network, its loss and the probe batch on which ranks are measured.

    The loss is the mean over the probe batch, sum_i w_i l(apply(params, inputs)_i, target_i)
    / sum_i w_i, without regularization terms. Each position of an output [n, ..., k] counts as an
    example.

    Example:
      >>> import jax.numpy as jnp, rankmon
      >>> apply = lambda params, x: jnp.tanh(x @ params["W1"]) @ params["W2"]
      >>> problem = rankmon.Problem(
      ...     apply, loss="mse", inputs=jnp.ones((8, 3)), targets=jnp.ones((8, 2))
      ... )
    """

    def __init__(
        self,
        apply: Apply,
        *,
        loss: str | LossFunction,
        inputs: Any,
        targets: Any,
        weights: Any = None,
        include: str | Sequence[str] | None = ("*",),
        exclude: str | Sequence[str] | None = (),
        lift_dtype: bool = False,
    ) -> None:
        """Create the problem, and check everything that does not depend on parameters.

        Args:
          apply: apply(params, inputs) -> outputs [n, k] or [n, ..., k]; it may have a third
            argument for the `extra` of a monitor's call.
          loss: "mse" (1/2 ||z - y||^2), "cross_entropy", "cosh", or a callable
            loss(output [k], target) -> scalar that JAX can differentiate twice.
          inputs: pytree of arrays with leading axis n. Arrays that are spread over processes
            (`jax.distributed`) are gathered, so every process must create the problem.
          targets: integers [n, ...] or arrays [n, ..., k]; for a callable loss any pytree of
            arrays whose leading axes are those of the outputs without k.
          weights: None, or non-negative example weights [n, ...]. An example of weight 0 does not
            count in the mean but is evaluated, so its outputs must be finite.
          include: globs over parameter names; only matching leaves are differentiated (None: all).
          exclude: globs over parameter names; matching leaves are held fixed.
          lift_dtype: also evaluate in float64 the operations that apply or a callable loss casts to
            a coarser dtype (mixed precision), instead of counting ranks at that dtype's eps. The
            measured network then differs from the trained one by rounding. (A network that JAX
            cannot trace in float64, and that uses no dtype coarser than its parameters', is lifted
            in any case.)

        Raises:
          TypeError, ValueError: for invalid arguments; the message says how to fix them.
        """
        remedy = how_to_state(apply)
        if remedy is not None:
            raise TypeError(
                "expected apply to be a function apply(params, inputs) -> outputs [n, k], got "
                f"{type(apply).__name__}; {remedy}"
            )
        self.apply = apply
        self.lift_dtype = lift_dtype = as_flag("lift_dtype", lift_dtype)
        self.loss = as_loss(lifted(loss) if lift_dtype and callable(loss) else loss)
        check_concrete("a Problem to be stated", (inputs, targets, weights))
        # Copies, because a data loader may reuse its buffers.
        with jax.transfer_guard("allow"):
            inputs, targets, weights = gathered((inputs, targets, weights))
            self.inputs = host_copies("inputs", inputs)
            self.targets = host_copies("targets", targets)
            self.weights = None if weights is None else host_copies("weights", np.array(weights))
        self.include = as_patterns("*" if include is None else include)
        self.exclude = as_patterns(() if exclude is None else exclude)
        self.n = leading_axis("inputs", self.inputs)
        check_some_numbers(self.inputs)
        of_targets = leading_axis("targets", self.targets)
        if of_targets != self.n:
            is_list = isinstance(inputs, list) or isinstance(targets, list)
            remedy = (
                "stack lists of examples: np.stack(inputs)" if is_list else "cut both to one batch"
            )
            raise ValueError(
                f"expected inputs and targets with the same number of examples, got {self.n} and "
                f"{of_targets}; {remedy}"
            )
        for name, tree in (("inputs", self.inputs), ("targets", self.targets)):
            check_finite(name, tree)
        if self.weights is not None:
            check_weights(self.weights, self.n)
        self.warnings_given: set[Any] = set()  # also those given for other probe batches
        self._flat: dict[Any, FlatProblem] = {}
        self._unpack: Callable[[Any], Any] = plain

    @classmethod
    def from_linen(
        cls,
        module: Any,
        *,
        method: Any = None,
        arguments: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> "Problem":
        """Return the problem of a Linen module, evaluated in inference mode.

        The parameters to measure are the module's `params`, a dict of variables with "params" and
        other collections (batch statistics), or a `TrainState`. Other collections are held fixed.
        If the method requires several inputs, they are a tuple (positional) or a dict (keywords).

        Args:
          module: the flax.linen.Module.
          method: the method to evaluate instead of `__call__`, as for `module.apply`.
          arguments: keyword arguments for the method. If it has an argument train, training,
            is_train, is_training or deterministic, rankmon sets it for inference.
          options: the arguments of `Problem`: loss, inputs, targets and the rest.

        Raises:
          TypeError, ValueError: for invalid arguments; the message says how to fix them.
        """
        check_options(options)
        apply = linen_apply(module, method, arguments, options.get("inputs"))
        problem = cls(apply, **options)
        problem._unpack = linen_unpack
        return problem

    @classmethod
    def from_nnx(
        cls, model: Any, *, arguments: Mapping[str, Any] = MappingProxyType({}), **options: Any
    ) -> "Problem":
        """Return the problem of an NNX model, evaluated in inference mode.

        The parameters to measure are the model itself, or its `nnx.state(model, nnx.Param)`. Only
        `nnx.Param` variables are differentiated; other variables (batch statistics) are read from
        the model at each measurement and held fixed. Random streams keep their values from this
        call, and so do all other variables if a measurement gets only a state.

        Args:
          model: the flax.nnx.Module; it is not modified.
          arguments: keyword arguments for its `__call__`.
          options: the arguments of `Problem`: loss, inputs, targets and the rest.

        Raises:
          TypeError, ValueError: for invalid arguments; the message says how to fix them.
        """
        check_options(options)
        return cls._of(nnx_network(model, arguments, options.get("inputs")), options)

    @classmethod
    def from_equinox(
        cls, model: Any, *, arguments: Mapping[str, Any] = MappingProxyType({}), **options: Any
    ) -> "Problem":
        """Return the problem of an Equinox model of one example, evaluated in inference mode.

        The parameters to measure are the model itself, its arrays (`equinox.filter(model,
        equinox.is_array)`), or for a model that takes a `state` the pair (model, state); the state
        is held fixed. A scalar for each example counts as one output, and targets may be [n] then.

        Args:
          model: the equinox.Module, called as model(example); several inputs as for `from_linen`.
          arguments: keyword arguments for its `__call__`, the same for all examples.
          options: the arguments of `Problem`: loss, inputs, targets and the rest.

        Raises:
          TypeError, ValueError: for invalid arguments; the message says how to fix them.
        """
        check_options(options)
        targets = as_column(options["targets"], options["loss"])
        network = equinox_network(model, arguments, options.get("inputs"))
        return cls._of(network, {**options, "targets": targets})

    @classmethod
    def from_haiku(
        cls,
        transformed: Any,
        *,
        rng: Any = None,
        arguments: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> "Problem":
        """Return the problem of a function transformed by Haiku, evaluated in inference mode.

        The parameters to measure are those of its `init`, a training state that contains them, or
        with `transform_with_state` the pair (params, state); the state is held fixed.

        Args:
          transformed: the result of `haiku.transform`, `transform_with_state` or
            `without_apply_rng`; several inputs as for `from_linen`.
          rng: the key of each evaluation, for functions that draw random numbers.
          arguments: keyword arguments; inference is switched on as for `from_linen`.
          options: the arguments of `Problem`: loss, inputs, targets and the rest.

        Raises:
          TypeError, ValueError: for invalid arguments; the message says how to fix them.
        """
        check_options(options)
        network = haiku_network(transformed, rng, arguments, options.get("inputs"))
        return cls._of(network, options)

    @classmethod
    def from_keras(
        cls, model: Any, *, arguments: Mapping[str, Any] = MappingProxyType({}), **options: Any
    ) -> "Problem":
        """Return the problem of a Keras model on the JAX backend, evaluated in inference mode.

        The parameters to measure are the model itself, or the values of its trainable variables.
        Non-trainable variables are read from the model at each measurement and held fixed. With
        loss "cross_entropy" and a softmax as the last layer, the outputs are the logarithms of its
        probabilities, which are logits too. For `model.fit` use `rankmon.keras.RankCallback`.

        Args:
          model: the model or layer, with weights; the loss that it is compiled with is not used.
          arguments: keyword arguments for its call.
          options: the arguments of `Problem`: loss, inputs, targets and the rest.

        Raises:
          TypeError, ValueError: for invalid arguments; the message says how to fix them.
        """
        check_options(options)
        network = keras_network(model, arguments, options.get("loss"))
        # Keras casts all inputs to the dtype of its layers, so that nothing would be in float64.
        return cls._of(network, {"lift_dtype": has_one_dtype(model), **options})

    @classmethod
    def _of(cls, network: tuple[Apply, Callable[[Any], Any]], options: Any) -> "Problem":
        apply, unpack = network
        problem = cls(apply, **options)
        problem._unpack = unpack
        return problem

    def on(self, inputs: Any, targets: Any, weights: np.ndarray | None) -> "Problem":
        """Return the same network and loss on another probe batch, made from checked arrays."""
        other = copy(self)
        other.inputs, other.targets, other.weights = inputs, targets, weights
        other.n = leading_axis("inputs", inputs)
        other._flat = {}
        return other

    def unpack(self, params: Any, extra: Any = None) -> Any:
        """Return the pytree to measure: the parameters, with other collections if there are any.

        Args:
          params: parameters, or the object that contains them (a TrainState, an NNX model).
          extra: other collections, the third argument of apply(params, inputs, extra).
        """
        if isinstance(params, Bundle):
            return params
        tree = self._unpack(params)
        if extra is None:
            return tree
        return Bundle(tree.params if isinstance(tree, Bundle) else tree, as_arrays(extra))

    def outputs(self, tree: Any, inputs: Any) -> Any:
        """Return the network's outputs at an unpacked pytree; traceable."""
        tree = as_given(tree)
        if isinstance(tree, Bundle):
            return self.apply(tree.params, inputs, tree.extra)
        return self.apply(tree, inputs)

    def flat(self, params: Any) -> FlatProblem:
        """Return this problem at parameters of this structure, as functions of one vector theta.

        The parameters are checked by their shapes, without computation.

        Raises:
          TypeError, ValueError: for invalid parameters; the message says how to fix them.
        """
        params = self.unpack(params)
        return self._flat_at(params, leaf_specs(params, include=self.include, exclude=self.exclude))

    def flat_like(self, other: FlatProblem) -> FlatProblem:
        """Return this problem at parameters like those of another problem of the same network.

        Raises:
          TypeError, ValueError: if the probe batch does not fit the network.
        """
        shapes = [jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in other.specs]
        flat = self._flat_at(jax.tree.unflatten(other.structure, shapes), other.specs)
        precision = other.precision
        if flat.precision != precision and flat.precision.dtype == precision.dtype:
            # The other problem had the values of the parameters, and warns of what they show.
            flat = replace(flat, precision=precision)
            self._flat[flat.structure, flat.specs] = flat
        return flat

    def _flat_at(self, params: Any, specs: tuple[LeafSpec, ...]) -> FlatProblem:
        key = (jax.tree.structure(params), specs)
        if key not in self._flat:
            try:
                self._flat[key] = flat_problem(self, params, specs)
            except Exception as error:
                explanation = explained(self, params, error)
                if explanation is error:
                    raise
                raise explanation from error
        return self._flat[key]

    def residuals(self, params: Any) -> Float[np.ndarray, "n k"]:
        """Return the residuals delta_i = dl/dz at each position, [N, k] in float64.

        Pass them to `hessian_ranks(..., reference=...)` to hold them fixed in H_f_fixed.
        """
        flat = self.flat(params)
        return flat.loss_and_residuals(*flat.split(flat.leaves(params)))[1]
