// Layers as autograd functions: their values as torch computes them, and the norms on the way back.
//
// What `clars.norms.tap` does in Python, where kernels do all of the work. Python between kernels costs more than a small
// layer itself, more so when the layers' tensors have pushed it out of the cache.

#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/native_layer_norm.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include "kernels.h"

namespace clars {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Tensors = std::vector<Tensor>;
using Maybe = std::optional<Tensor>;

struct Needs {
  bool x, weight, bias;
};

// What a layer's backward pass yields: gradients, and the squared norms of the examples' parts of two of them.
struct Gradients {
  Tensor x, weight, bias;
  Maybe weight_squares, bias_squares;
};

struct Conv {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
  std::string method;
  int64_t most;  // examples under way at once

  Tensor forward(const Tensor& x, const Tensor& weight, const Maybe& bias, Tensors&) const {
    return at::convolution(x, weight, bias, stride, padding, dilation, false, none(), groups);
  }

  Gradients backward(const Tensor& gy, const Tensor& x, const Tensor& weight, const Tensors&, Needs needs) const {
    Gradients got;
    if (needs.x) got.x = std::get<0>(plain(gy, x, weight, {true, false, false}));
    if (needs.weight) std::tie(got.weight, got.weight_squares) = products(gy, x, weight);
    if (needs.bias) std::tie(got.bias, got.bias_squares) = position_sums(gy.flatten(2));
    return got;
  }

 private:
  std::vector<int64_t> none() const { return std::vector<int64_t>(stride.size(), 0); }

  std::tuple<Tensor, Tensor, Tensor> plain(const Tensor& gy, const Tensor& x, const Tensor& weight,
                                           std::array<bool, 3> mask) const {
    return at::convolution_backward(gy, x, weight, at::OptionalIntArrayRef(), stride, padding, dilation, false, none(),
                                    groups, mask);
  }

  std::tuple<Tensor, Maybe> products(const Tensor& gy, const Tensor& x, const Tensor& weight) const {
    if (method == "matrix") return pointwise_products(gy, x, weight, stride, most);
    if (method == "each") return conv_products(gy, x, weight, stride, padding, dilation, groups, most);
    const at::IntArrayRef kernel = weight.sizes().slice(2);
    if (method == "direct")
      return groups > 1 ? depthwise_products(gy, x, kernel, stride, padding, dilation, most)
                        : small_conv_products(gy, x, kernel, stride, padding, dilation, most);
    TORCH_INTERNAL_ASSERT(method == "gram");
    const bool point = weight.numel() == weight.size(0) * weight.size(1);
    return {std::get<1>(plain(gy, x, weight, {false, true, false})),
            point ? gram_squares(gy.flatten(2), points(x, stride), most)
                  : window_gram_squares(gy, x, kernel, stride, padding, dilation, most)};
  }
};

// Of x [B, ..., D] with gy [B, ..., P].
struct Linear {
  std::string method;
  int64_t most;

  Tensor forward(const Tensor& x, const Tensor& weight, const Maybe& bias, Tensors&) const {
    return at::linear(x, weight, bias);
  }

  Gradients backward(const Tensor& gy, const Tensor& x, const Tensor& weight, const Tensors&, Needs needs) const {
    // [B, P, T] and [B, D, T], as for convolutions
    const Tensor outputs = gy.reshape({gy.size(0), -1, gy.size(-1)}).transpose(1, 2);
    const Tensor inputs = x.reshape({x.size(0), -1, x.size(-1)}).transpose(1, 2);
    Gradients got;
    if (needs.x) got.x = at::matmul(gy, weight);
    if (needs.weight) {
      if (method == "matrix") {
        std::tie(got.weight, got.weight_squares) = matrix_products(outputs, inputs, most);
      } else {
        TORCH_INTERNAL_ASSERT(method == "gram");
        got.weight = at::mm(gy.reshape({-1, gy.size(-1)}).t(), x.reshape({-1, x.size(-1)}));
        got.weight_squares = gram_squares(outputs, inputs, most);
      }
    }
    if (needs.bias) std::tie(got.bias, got.bias_squares) = position_sums(outputs);
    return got;
  }
};

Gradients arranged(Affine all) {
  auto [x, weight, bias, weight_squares, bias_squares] = std::move(all);
  return {x, weight, bias, weight_squares, bias_squares};
}

// In training mode, of contiguous x [B, C, ...].
struct BatchNorm {
  Maybe running_mean, running_var;
  double momentum, eps;

  Tensor forward(const Tensor& x, const Tensor& weight, const Maybe& bias, Tensors& saved) const {
    auto [y, mean, rstd] = at::native_batch_norm(x, weight, bias, running_mean, running_var, true, momentum, eps);
    saved = {mean, rstd};
    return y;
  }

  Gradients backward(const Tensor& gy, const Tensor& x, const Tensor& weight, const Tensors& saved, Needs) const {
    return arranged(batch_norm_backward(gy.contiguous(), x, saved[0], saved[1], weight));
  }
};

// Over the last dimensions of x [B, ..., *weight's].
struct LayerNorm {
  double eps;

  Tensor forward(const Tensor& x, const Tensor& weight, const Maybe& bias, Tensors& saved) const {
    auto [y, mean, rstd] = at::native_layer_norm(x, weight.sizes(), weight, bias, eps);
    saved = {mean, rstd};
    return y;
  }

  Gradients backward(const Tensor& gy, const Tensor& x, const Tensor& weight, const Tensors& saved, Needs) const {
    const std::vector<int64_t> by_position{x.size(0), -1, weight.numel()};
    Gradients got = arranged(layer_norm_backward(gy.contiguous().view(by_position), x.contiguous().view(by_position),
                                                 saved[0], saved[1], weight.contiguous().view(-1)));
    return {got.x.view(x.sizes()), got.weight.view(weight.sizes()), got.bias.view(weight.sizes()), got.weight_squares,
            got.bias_squares};
  }
};

// A layer's call on its way through the graph. The accounts are numbers by which Python knows who measures what.
template <typename Layer>
struct Call : torch::CustomClassHolder {
  Call(Layer layer, bool has_bias, int64_t of_weight, int64_t of_bias)
      : layer(std::move(layer)), has_bias(has_bias), of_weight(of_weight), of_bias(of_bias) {}

  const Layer layer;
  const bool has_bias;
  const int64_t of_weight, of_bias;
  const int64_t outer_pass = torch::autograd::get_current_graph_task_id();  // not -1: recomputed in a backward pass
  bool spent = false;
};

// Tells Python, which keeps the accounts, what was measured for one of them; it may refuse.
template <typename Layer>
void book(const Call<Layer>& call, int64_t account, int64_t examples, const Maybe& squares) {
  using Book = void(int64_t, int64_t, int64_t, bool, const Tensor&);
  static const auto python = c10::Dispatcher::singleton().findSchemaOrThrow("clars::book", "").typed<Book>();
  at::AutoDispatchBelowADInplaceOrView no_graph;
  python.call(account, call.outer_pass, examples, call.spent, *squares);
}

template <typename Layer>
struct Tap : torch::autograd::Function<Tap<Layer>> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Maybe& bias,
                        c10::intrusive_ptr<Call<Layer>> call) {
    Tensors saved;
    Tensor y = call->layer.forward(x, weight, bias, saved);
    // One tensor more than the layer's own function saves: activation checkpointing, which puts what a recomputed
    // forward saves into the places of these, then notices where the recomputation is not tracked.
    variable_list all{x, weight, at::empty({0})};
    all.insert(all.end(), saved.begin(), saved.end());
    ctx->save_for_backward(std::move(all));
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto capsule = ctx->saved_data["call"].toCapsule();
    auto& call = static_cast<Call<Layer>&>(*capsule);
    const variable_list all = ctx->get_saved_variables();
    const Tensors saved(all.begin() + 3, all.end());
    const Needs needs{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                      call.has_bias && ctx->needs_input_grad(2)};
    const bool again = at::GradMode::is_enabled();
    Gradients got;
    {
      at::AutoGradMode no_graph(false);
      c10::impl::ExcludeDispatchKeyGuard full_precision(c10::autocast_dispatch_keyset);
      got = call.layer.backward(gradients[0], all[0], all[1], saved, needs);
    }
    const int64_t examples = all[0].size(0);
    if (needs.weight && needs.bias && call.of_weight == call.of_bias) {
      book(call, call.of_weight, examples, got.weight_squares->add(*got.bias_squares));
    } else {
      if (needs.weight && call.of_weight) book(call, call.of_weight, examples, got.weight_squares);
      if (needs.bias && call.of_bias) book(call, call.of_bias, examples, got.bias_squares);
    }
    call.spent = call.spent || needs.weight || needs.bias;
    variable_list found{needs.x ? got.x : Tensor(), needs.weight ? got.weight : Tensor(),
                        needs.bias ? got.bias : Tensor()};
    if (again) {
      for (Tensor& gradient : found)
        if (gradient.defined()) gradient = gradient.detach().requires_grad_();
      torch::autograd::DelayedError error("a layer that is tracked cannot be differentiated twice", 3);
      found = error.apply(std::move(found));
    }
    found.emplace_back();
    return found;
  }
};

template <typename Layer>
Tensor tapped(const Tensor& x, const Tensor& weight, const Maybe& bias, Layer layer, int64_t of_weight,
              int64_t of_bias) {
  auto call = c10::make_intrusive<Call<Layer>>(std::move(layer), bias.has_value(), of_weight, of_bias);
  return Tap<Layer>::apply(x, weight, bias, std::move(call));
}

Tensor conv(const Tensor& x, const Tensor& weight, const Maybe& bias, at::IntArrayRef stride, at::IntArrayRef padding,
            at::IntArrayRef dilation, int64_t groups, std::string method, int64_t most, int64_t of_weight,
            int64_t of_bias) {
  const Conv layer{stride.vec(), padding.vec(), dilation.vec(), groups, std::move(method), most};
  return tapped(x, weight, bias, layer, of_weight, of_bias);
}

Tensor linear(const Tensor& x, const Tensor& weight, const Maybe& bias, std::string method, int64_t most,
              int64_t of_weight, int64_t of_bias) {
  return tapped(x, weight, bias, Linear{std::move(method), most}, of_weight, of_bias);
}

Tensor batch_norm(const Tensor& x, const Tensor& weight, const Maybe& bias, const Maybe& running_mean,
                  const Maybe& running_var, double momentum, double eps, int64_t of_weight, int64_t of_bias) {
  return tapped(x, weight, bias, BatchNorm{running_mean, running_var, momentum, eps}, of_weight, of_bias);
}

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Maybe& bias, double eps, int64_t of_weight,
                  int64_t of_bias) {
  return tapped(x, weight, bias, LayerNorm{eps}, of_weight, of_bias);
}

}  // namespace

// What Python sees of all the kernels.
TORCH_LIBRARY_FRAGMENT(clars, m) {
  m.def(
      "conv(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, str method, "
      "int most, int of_weight, int of_bias) -> Tensor",
      conv);
  m.def(
      "linear(Tensor x, Tensor weight, Tensor? bias, str method, int most, int of_weight, int of_bias) -> Tensor",
      linear);
  m.def(
      "batch_norm(Tensor x, Tensor weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, float momentum, "
      "float eps, int of_weight, int of_bias) -> Tensor",
      batch_norm);
  m.def(
      "layer_norm(Tensor x, Tensor weight, Tensor? bias, float eps, int of_weight, int of_bias) -> Tensor", layer_norm);
  m.def("matrix_products(Tensor gy, Tensor x, int most) -> (Tensor, Tensor)");
  m.def(
      "pointwise_products(Tensor gy, Tensor x, Tensor weight, int[] stride, int most) -> (Tensor, Tensor)");
  m.def(
      "conv_products(Tensor gy, Tensor x, Tensor weight, int[] stride, int[] padding, int[] dilation, int groups, "
      "int most) -> (Tensor, Tensor)");
  m.def("gram_squares(Tensor gy, Tensor x, int most) -> Tensor");
  m.def(
      "window_gram_squares(Tensor gy, Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, int most) -> "
      "Tensor");
  m.def(
      "small_conv_products(Tensor gy, Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, int most) "
      "-> (Tensor, Tensor)");
  m.def(
      "depthwise_products(Tensor gy, Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, int most) "
      "-> (Tensor, Tensor)");
  m.def("position_sums(Tensor gy) -> (Tensor, Tensor)");
  m.def("dense(Tensor[] tensors) -> bool", dense);
  m.def("alike(Tensor[] a, Tensor[] b) -> bool[]", alike);
  m.def("norms(Tensor[] tensors) -> Tensor");
  m.def(
      "update(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] buffers, Tensor rates, float momentum, float "
      "weight_decay, bool nesterov) -> ()");
}

TORCH_LIBRARY_IMPL(clars, CPU, m) {
  m.impl("matrix_products", matrix_products);
  m.impl("pointwise_products", pointwise_products);
  m.impl("conv_products", conv_products);
  m.impl("gram_squares", gram_squares);
  m.impl("window_gram_squares", window_gram_squares);
  m.impl("small_conv_products", small_conv_products);
  m.impl("depthwise_products", depthwise_products);
  m.impl("position_sums", position_sums);
  m.impl("norms", norms);
  m.impl("update", update);
}

}  // namespace clars
