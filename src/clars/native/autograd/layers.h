// The layers that a function in C++ does whole: their values as torch computes them, and their backward passes with
// norms. An object is one layer's call, made for inputs of certain sizes and for norms of groups of so many examples.
#pragma once

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/native_group_norm.h>
#include <ATen/ops/native_layer_norm.h>

#include "../kernels/kernels.h"

namespace clars {

using Tensors = std::vector<Tensor>;
using Maybe = std::optional<Tensor>;

struct Needs {
  bool x, weight, bias;
};

// What a layer's backward pass yields: gradients, and the measured examples' or groups' squared norms of two of them.
struct Gradients {
  Tensor x, weight, bias;
  Tensor weight_squares, bias_squares;
};

class Layer {
 public:
  Layer(const Tensor& x, const Tensor& weight, int64_t group)
      : group(group),
        sizes(x.sizes().vec()),
        strides(x.strides().vec()),
        weight_sizes(weight.sizes().vec()),
        threads(at::get_num_threads()) {}

  // Whether the call is one of those that this object was made for.
  bool takes(const Tensor& x, const Tensor& weight) const {
    return plain(x) && plain(weight) && x.sizes() == sizes && x.strides() == strides &&
           weight.sizes() == weight_sizes && at::get_num_threads() == threads &&
           at::globalContext().userEnabledMkldnn() && !at::autocast::is_autocast_enabled(at::kCPU);
  }

  // What is computed here is computed without autocast (see `takes`).
  static const Tensor& cast(const Tensor& tensor) { return tensor; }

  const int64_t group;

 private:
  static bool plain(const Tensor& tensor) {
    return tensor.is_cpu() && tensor.scalar_type() == at::kFloat && tensor.layout() == at::kStrided &&
           !tensor.is_neg() && !tensor._is_zerotensor();
  }

  const std::vector<int64_t> sizes, strides, weight_sizes;
  const int threads;
};

// A convolution, of any number of dimensions.
class Conv : public Layer {
 public:
  Conv(const Tensor& x, const Tensor& weight, int64_t group, std::vector<int64_t> stride, std::vector<int64_t> padding,
       std::vector<int64_t> dilation, int64_t groups, std::string method, int64_t most)
      : Layer(x, weight, group), stride(stride), padding(padding), dilation(dilation), groups(groups), method(method),
        most(most) {}

  Tensor forward(const Tensor& x, const Tensor& weight, const Maybe& bias, Tensors&) const {
    return at::convolution(x, weight, bias, stride, padding, dilation, false, none(), groups);
  }

  Gradients backward(const Tensor& gy, const Tensor& x, const Tensor& weight, const Tensors&, Needs needs,
                     Measured measured) const {
    Gradients got;
    if (needs.x) got.x = input(gy, x, weight);
    if (needs.weight) std::tie(got.weight, got.weight_squares) = products(gy, x, weight, measured);
    if (needs.bias) std::tie(got.bias, got.bias_squares) = measured.of(position_sums(gy.flatten(2), group));
    return got;
  }

 private:
  std::vector<int64_t> none() const { return std::vector<int64_t>(stride.size(), 0); }

  std::tuple<Tensor, Tensor, Tensor> plain(const Tensor& gy, const Tensor& x, const Tensor& weight,
                                           std::array<bool, 3> mask) const {
    return at::convolution_backward(gy, x, weight, at::OptionalIntArrayRef(), stride, padding, dilation, false, none(),
                                    groups, mask);
  }

  // On one thread, few examples of a convolution of one position are no matter of oneDNN's to torch, and take longer.
  Tensor input(const Tensor& gy, const Tensor& x, const Tensor& weight) const {
    const auto all = [](const std::vector<int64_t>& values, int64_t value) {
      return std::all_of(values.begin(), values.end(), [=](int64_t each) { return each == value; });
    };
    const bool point = weight.numel() == weight.size(0) * weight.size(1);
    const bool bare = groups == 1 && point && all(stride, 1) && all(padding, 0);
    if (bare && at::get_num_threads() == 1 && x.size(0) < 16 && x.is_contiguous() && gy.is_contiguous())
      return pointwise_input(gy, weight);
    return std::get<0>(plain(gy, x, weight, {true, false, false}));
  }

  Products products(const Tensor& gy, const Tensor& x, const Tensor& weight, Measured measured) const {
    if (method == "matrix") return pointwise_products(gy, x, weight, stride, most, measured);
    if (method == "each") return conv_products(gy, x, weight, stride, padding, dilation, groups, most, measured);
    const at::IntArrayRef kernel = weight.sizes().slice(2);
    if (method == "tiled")
      return measured.of(tiled_products(gy, x, kernel, stride, padding, dilation, groups, most, group));
    if (method == "direct")
      return measured.of(groups > 1 ? depthwise_products(gy, x, kernel, stride, padding, dilation, most, group)
                                    : small_conv_products(gy, x, kernel, stride, padding, dilation, most, group));
    TORCH_INTERNAL_ASSERT(method == "gram");
    const bool point = weight.numel() == weight.size(0) * weight.size(1);
    const Tensor some_gy = measured.of(gy), some_x = measured.of(x);
    return {std::get<1>(plain(gy, x, weight, {false, true, false})),
            point ? gram_squares(some_gy.flatten(2), points(some_x, stride), most, group)
                  : window_gram_squares(some_gy, some_x, kernel, stride, padding, dilation, most)};
  }

  const std::vector<int64_t> stride, padding, dilation;
  const int64_t groups;
  const std::string method;
  const int64_t most;  // examples under way at once
};

// Of x [B, ..., D] with gy [B, ..., P].
class Linear : public Layer {
 public:
  Linear(const Tensor& x, const Tensor& weight, int64_t group, std::string method, int64_t most)
      : Layer(x, weight, group), method(method), most(most) {}

  Tensor forward(const Tensor& x, const Tensor& weight, const Maybe& bias, Tensors&) const {
    return at::linear(x, weight, bias);
  }

  Gradients backward(const Tensor& gy, const Tensor& x, const Tensor& weight, const Tensors&, Needs needs,
                     Measured measured) const {
    // [B, P, T] and [B, D, T], as for convolutions
    const Tensor outputs = gy.reshape({gy.size(0), -1, gy.size(-1)}).transpose(1, 2);
    const Tensor inputs = x.reshape({x.size(0), -1, x.size(-1)}).transpose(1, 2);
    Gradients got;
    if (needs.x) got.x = at::matmul(gy, weight);
    if (needs.weight) {
      if (method == "matrix") {
        std::tie(got.weight, got.weight_squares) = matrix_products(outputs, inputs, most, measured);
      } else {
        TORCH_INTERNAL_ASSERT(method == "gram");
        got.weight = at::mm(gy.reshape({-1, gy.size(-1)}).t(), x.reshape({-1, x.size(-1)}));
        got.weight_squares = gram_squares(measured.of(outputs), measured.of(inputs), most, group);
      }
    }
    if (needs.bias) std::tie(got.bias, got.bias_squares) = measured.of(position_sums(outputs, group));
    return got;
  }

 private:
  const std::string method;
  const int64_t most;
};

inline Gradients arranged(Affine all, Measured measured) {
  auto [x, weight, bias, weight_squares, bias_squares] = std::move(all);
  return {x, weight, bias, measured.of(weight_squares), measured.of(bias_squares)};
}

// In training mode, of contiguous x [B, C, ...].
class BatchNorm : public Layer {
 public:
  BatchNorm(const Tensor& x, const Tensor& weight, int64_t group, Maybe running_mean, Maybe running_var,
            double momentum, double eps)
      : Layer(x, weight, group), running_mean(running_mean), running_var(running_var), momentum(momentum), eps(eps) {}

  Tensor forward(const Tensor& x, const Tensor& weight, const Maybe& bias, Tensors& saved) const {
    auto [y, mean, rstd] = at::native_batch_norm(x, weight, bias, running_mean, running_var, true, momentum, eps);
    saved = {mean, rstd};
    return y;
  }

  Gradients backward(const Tensor& gy, const Tensor& x, const Tensor& weight, const Tensors& saved, Needs,
                     Measured measured) const {
    return arranged(batch_norm_backward(gy.contiguous(), x, saved[0], saved[1], weight, group), measured);
  }

 private:
  const Maybe running_mean, running_var;
  const double momentum, eps;
};

// Of contiguous x [B, C, ...].
class GroupNorm : public Layer {
 public:
  GroupNorm(const Tensor& x, const Tensor& weight, int64_t group, int64_t groups, double eps)
      : Layer(x, weight, group), groups(groups), eps(eps) {}

  Tensor forward(const Tensor& x, const Tensor& weight, const Maybe& bias, Tensors& saved) const {
    const int64_t examples = x.size(0), channels = x.size(1), positions = x.numel() / (examples * channels);
    auto [y, mean, rstd] = at::native_group_norm(x, weight, bias, examples, channels, positions, groups, eps);
    saved = {mean, rstd};
    return y;
  }

  Gradients backward(const Tensor& gy, const Tensor& x, const Tensor& weight, const Tensors& saved, Needs,
                     Measured measured) const {
    return arranged(group_norm_backward(gy.contiguous(), x, saved[0], saved[1], weight, group), measured);
  }

 private:
  const int64_t groups;
  const double eps;
};

// Over the last dimensions of x [B, ..., *weight's].
class LayerNorm : public Layer {
 public:
  LayerNorm(const Tensor& x, const Tensor& weight, int64_t group, double eps) : Layer(x, weight, group), eps(eps) {}

  Tensor forward(const Tensor& x, const Tensor& weight, const Maybe& bias, Tensors& saved) const {
    auto [y, mean, rstd] = at::native_layer_norm(x, weight.sizes(), weight, bias, eps);
    saved = {mean, rstd};
    return y;
  }

  Gradients backward(const Tensor& gy, const Tensor& x, const Tensor& weight, const Tensors& saved, Needs,
                     Measured measured) const {
    const std::vector<int64_t> by_position{x.size(0), -1, weight.numel()};
    Gradients got = arranged(layer_norm_backward(gy.contiguous().view(by_position), x.contiguous().view(by_position),
                                                 saved[0], saved[1], weight.contiguous().view(-1), group),
                             measured);
    return {got.x.view(x.sizes()), got.weight.view(weight.sizes()), got.bias.view(weight.sizes()), got.weight_squares,
            got.bias_squares};
  }

 private:
  const double eps;
};

}  // namespace clars
