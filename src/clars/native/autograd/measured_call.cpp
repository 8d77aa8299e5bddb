// Layers as autograd functions that measure on the way back.
//
// What `clars.norms.watch.measured_call` does in Python, where kernels do all of the work. Python between kernels costs more than a small
// layer itself, more so when the layers' tensors have pushed it out of the cache.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include <mutex>
#include <unordered_map>

#include "accelerated.h"

namespace clars {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <typename Kind>
using Pointer = std::shared_ptr<const Kind>;

// The layers of one kind that were made, by the numbers under which Python holds them: to pass an object from there
// takes longer than all else.
template <typename Kind>
class Made {
 public:
  static int64_t add(Pointer<Kind> layer) {
    const std::lock_guard lock(mutex);
    layers.emplace(++last, std::move(layer));
    return last;
  }

  static Pointer<Kind> get(int64_t number) {
    const std::lock_guard lock(mutex);
    return layers.at(number);
  }

  static void drop(int64_t number) {
    const std::lock_guard lock(mutex);
    layers.erase(number);
  }

 private:
  static inline std::mutex mutex;
  static inline std::unordered_map<int64_t, Pointer<Kind>> layers;
  static inline int64_t last = 0;
};

// A layer's call on its way through the graph. The accumulators are numbers by which Python knows who measures what.
template <typename Kind>
struct LayerCall : torch::CustomClassHolder {
  LayerCall(Pointer<Kind> layer, bool has_bias, int64_t of_weight, int64_t of_bias)
      : layer(std::move(layer)), has_bias(has_bias), of_weight(of_weight), of_bias(of_bias) {}

  const Pointer<Kind> layer;
  const bool has_bias;
  const int64_t of_weight, of_bias;
  const int64_t outer_pass = torch::autograd::get_current_graph_task_id();  // not -1: recomputed in a backward pass
  bool spent = false;
};

// What is told where gradients of gradients are asked for; Python's layers say the same.
const char* const twice =
    "A layer that clars measures cannot be differentiated twice (a gradient penalty in the loss?). Take the tracking "
    "away for it: norms.remove(), with optimizer.norms as norms.";

// Whether the pass under way yields only some of the gradients, or leaves some elsewhere than in the parameters.
bool is_partial() { return !torch::autograd::get_current_graph_task_exec_info()->empty(); }

// The number of the backward pass under way, or of the one that recomputed the forward.
template <typename Kind>
int64_t pass_of(const LayerCall<Kind>& call) {
  return call.outer_pass == -1 ? torch::autograd::get_current_graph_task_id() : call.outer_pass;
}

// Adds to an accumulator the tensor that will hold the squared norms of all examples, or of all groups of them, zero where
// the layer then fails.
// Returns what to measure; nothing where the gradient does not arrive in the parameters. Python, which keeps the
// accumulators, may refuse, or have the whole call kept back (`late`): the layer was used again after it.
template <typename Kind>
std::optional<Measured> add(const LayerCall<Kind>& call, int64_t accumulator, int64_t examples, const Tensor& squares,
                            bool& late) {
  using Add = std::tuple<int64_t, int64_t, bool>(int64_t, int64_t, bool, bool, int64_t, const Tensor&);
  static const auto python = c10::Dispatcher::singleton().findSchemaOrThrow("clars::add_squares", "").typed<Add>();
  const auto [first, last, added] =
      python.call(accumulator, pass_of(call), call.spent, is_partial(), examples, squares);
  late = late || first < 0;
  return added ? std::optional<Measured>({first, last, call.layer->group}) : std::nullopt;
}

// Keeps back what a call contributes, to be added to that of the layer's other uses.
template <typename Kind>
void keep_back(const LayerCall<Kind>& call, Needs needs, const Tensor& gy, const variable_list& all) {
  using Keep = void(int64_t, int64_t, int64_t, bool, bool, const Tensor&, const Tensor&, const Tensor&, at::TensorList);
  static const auto python = c10::Dispatcher::singleton().findSchemaOrThrow("clars::keep_back", "").typed<Keep>();
  python.call(needs.weight ? call.of_weight : 0, needs.bias ? call.of_bias : 0, pass_of(call), call.spent, is_partial(),
              gy, all[0], all[1], at::TensorList(all).slice(3));
}

// A gradient whose numbers are in memory as they are: those that passed through complex conjugation may be there negated,
// and zeros not at all.
Tensor in_memory(const Tensor& gy) {
  return gy._is_zerotensor() ? at::zeros(gy.sizes(), gy.options()) : gy.resolve_neg();
}

// Puts the squared norms that were formed, or the sums of two of them, in their places among those of all.
void fill(const Tensor& all, Measured part, const Tensor& squares, const Tensor& more = {}) {
  float* to = all.mutable_data_ptr<float>() + part.first;
  const float* from = squares.const_data_ptr<float>();
  const float* and_from = more.defined() ? more.const_data_ptr<float>() : nullptr;
  for (int64_t i = 0; i < part.norms(); i++) to[i] = from[i] + (and_from ? and_from[i] : 0.f);
}

template <typename Kind>
struct MeasuredCall : torch::autograd::Function<MeasuredCall<Kind>> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Maybe& bias,
                        c10::intrusive_ptr<LayerCall<Kind>> call) {
    Tensors saved;
    Tensor y = call->layer->forward(x, weight, bias, saved);
    // One tensor more than the layer's own function saves: activation checkpointing, which puts what a recomputed
    // forward saves into the places of these, then notices where the recomputation is not tracked.
    variable_list all{x, weight, at::empty({0}, x.options())};
    all.insert(all.end(), saved.begin(), saved.end());
    ctx->save_for_backward(std::move(all));
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto capsule = ctx->saved_data["call"].toCapsule();
    auto& call = static_cast<LayerCall<Kind>&>(*capsule);
    const variable_list all = ctx->get_saved_variables();
    const Needs needs{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                      call.has_bias && ctx->needs_input_grad(2)};
    const bool again = at::GradMode::is_enabled();
    Gradients got;
    {
      at::AutoGradMode no_graph(false);
      c10::impl::ExcludeDispatchKeyGuard full_precision(c10::autocast_dispatch_keyset);
      if constexpr (std::is_base_of_v<Accelerated, Kind>) {
        got = accelerated(call, in_memory(gradients[0]), all, needs);
      } else {
        got = measured(call, in_memory(gradients[0]), all, needs);
      }
    }
    variable_list found{needs.x ? got.x : Tensor(), needs.weight ? got.weight : Tensor(),
                        needs.bias ? got.bias : Tensor()};
    if (again) {
      for (Tensor& gradient : found)
        if (gradient.defined()) gradient = gradient.detach().requires_grad_();
      torch::autograd::DelayedError error(twice, 3);
      found = error.apply(std::move(found));
    }
    found.emplace_back();
    return found;
  }

 private:
  static Gradients accelerated(LayerCall<Kind>& call, const Tensor& gy, const variable_list& all, Needs needs) {
    using Backward = std::tuple<Tensor, Tensor, Tensor, bool>(int64_t, int64_t, int64_t, int64_t, bool, bool,
                                                             const Tensor&, const Tensor&, const Tensor&,
                                                             at::TensorList, bool, bool, bool, const Maybe&);
    static const auto python =
        c10::Dispatcher::singleton().findSchemaOrThrow("clars::accelerated_backward", "").typed<Backward>();
    const Tensor &x = all[0], &weight = all[1];
    const Kind& layer = *call.layer;
    Tensor bias, bias_squares;
    if (needs.bias) std::tie(bias, bias_squares) = layer.added(gy);
    const auto squares = bias_squares.defined() ? Maybe(bias_squares) : std::nullopt;
    const auto [formed_x, formed_weight, formed_bias, asked] =
        python.call(layer.plan, needs.weight ? call.of_weight : 0, needs.bias ? call.of_bias : 0, pass_of(call),
                    call.spent, is_partial(), gy, x, weight, at::TensorList(all).slice(3), needs.x, needs.weight,
                    needs.bias, squares);
    call.spent = call.spent || asked;
    const bool x_too = needs.x && !formed_x.numel(), weight_too = needs.weight && !formed_weight.numel();
    Gradients got = layer.rest(gy, x, weight, {x_too, weight_too, false});
    if (!x_too) got.x = formed_x;
    if (!weight_too) got.weight = formed_weight;
    got.bias = bias.defined() ? bias : formed_bias;
    return got;
  }

  static Gradients measured(LayerCall<Kind>& call, const Tensor& gy, const variable_list& all, Needs needs) {
    const Tensor &x = all[0], &weight = all[1];
    const bool for_weight = needs.weight && call.of_weight, for_bias = needs.bias && call.of_bias;
    const bool joint = for_weight && for_bias && call.of_weight == call.of_bias;
    std::optional<Measured> weight_part, bias_part;
    Tensor of_weight, of_bias;
    const int64_t examples = x.size(0), group = call.layer->group;
    const auto none = [&] { return at::zeros({groups_of(examples, group)}, x.options()); };
    bool late = false;
    if (for_weight) weight_part = add(call, call.of_weight, examples, of_weight = none(), late);
    if (for_bias && !joint) bias_part = add(call, call.of_bias, examples, of_bias = none(), late);
    if (late) keep_back(call, needs, gy, all);
    call.spent = call.spent || late || weight_part || bias_part;
    const Measured part = weight_part.value_or(bias_part.value_or(Measured{0, examples, group}));
    const Gradients got = call.layer->backward(gy, x, weight, Tensors(all.begin() + 3, all.end()), needs, part);
    if (weight_part) fill(of_weight, part, got.weight_squares, joint ? got.bias_squares : Tensor());
    if (bias_part) fill(of_bias, part, got.bias_squares);
    return got;
  }
};

// None where the layer was made for other calls than this.
template <typename Kind>
Maybe called(const Tensor& x, const Tensor& weight, const Maybe& bias, int64_t number, int64_t of_weight,
             int64_t of_bias) {
  Pointer<Kind> layer = Made<Kind>::get(number);
  if (!layer->takes(x, weight)) return std::nullopt;
  auto call = c10::make_intrusive<LayerCall<Kind>>(layer, bias.has_value(), of_weight, of_bias);
  const Maybe cast_bias = bias ? Maybe(layer->cast(*bias)) : bias;
  return MeasuredCall<Kind>::apply(layer->cast(x), layer->cast(weight), cast_bias, std::move(call));
}

template <typename Kind, typename... Arguments>
int64_t make(const Tensor& x, const Tensor& weight, int64_t group, Arguments... arguments) {
  return Made<Kind>::add(std::make_shared<Kind>(x, weight, group, std::move(arguments)...));
}

template <typename Kind, typename... Arguments>
void define(torch::Library& library, const std::string& kind, const std::string& hyper_parameters) {
  const std::string made = "make." + kind + "(Tensor x, Tensor weight, int group, " + hyper_parameters + ") -> int";
  const std::string call = "call." + kind +
                          "(Tensor x, Tensor weight, Tensor? bias, int layer, int of_weight, int of_bias) -> Tensor?";
  const std::string drop = "drop." + kind + "(int layer) -> ()";
  library.def(made.c_str(), make<Kind, Arguments...>);
  library.def(call.c_str(), called<Kind>);
  library.def(drop.c_str(), Made<Kind>::drop);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(clars, m) {
  m.def("ended_plans() -> int[]", EndedPlans::take);
  using Sizes = std::vector<int64_t>;
  define<Conv, Sizes, Sizes, Sizes, int64_t, std::string, int64_t>(
      m, "Conv", "int[] stride, int[] padding, int[] dilation, int groups, str method, int most");
  define<Linear, std::string, int64_t>(m, "Linear", "str method, int most");
  define<BatchNorm, Maybe, Maybe, double, double>(
      m, "BatchNorm", "Tensor? running_mean, Tensor? running_var, float momentum, float eps");
  define<GroupNorm, int64_t, double>(m, "GroupNorm", "int groups, float eps");
  define<LayerNorm, double>(m, "LayerNorm", "float eps");
  define<AcceleratedConv, int64_t, Sizes, Sizes, Sizes, int64_t>(
      m, "AcceleratedConv", "int plan, int[] stride, int[] padding, int[] dilation, int groups");
  define<AcceleratedLinear, int64_t>(m, "AcceleratedLinear", "int plan");
  define<AcceleratedBatchNorm, int64_t, Maybe, Maybe, bool, double, double>(
      m, "AcceleratedBatchNorm",
      "int plan, Tensor? running_mean, Tensor? running_var, bool training, float momentum, float eps");
  define<AcceleratedGroupNorm, int64_t, int64_t, double>(m, "AcceleratedGroupNorm", "int plan, int groups, float eps");
  define<AcceleratedLayerNorm, int64_t, double>(m, "AcceleratedLayerNorm", "int plan, float eps");
}

}  // namespace clars
