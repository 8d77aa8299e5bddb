// The kernels, each described where it is defined.
#pragma once

#include <ATen/core/List.h>

#include "parallel.h"

namespace clars {

using Products = std::tuple<Tensor, Tensor>;                       // a gradient, and the examples' squared norms
using Affine = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // gradients of x, scale, shift; squares of the two

// The examples whose squared norms are wanted; the gradient is that of all.
struct Measured {
  int64_t first, last;

  Tensor of(const Tensor& all) const {
    return first == 0 && last == all.size(0) ? all : all.narrow(0, first, last - first);
  }
  Products of(Products all) const { return {std::get<0>(all), of(std::get<1>(all))}; }
};

Tensor times_transposed(const Tensor& a, const Tensor& b);
Products matrix_products(const Tensor& gy, const Tensor& x, int64_t most, Measured measured);
Tensor points(const Tensor& x, at::IntArrayRef stride);
Products pointwise_products(const Tensor& gy, const Tensor& x, const Tensor& weight, at::IntArrayRef stride,
                            int64_t most, Measured measured);
Products conv_products(const Tensor& gy, const Tensor& x, const Tensor& weight, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, int64_t most, Measured measured);
Products small_conv_products(const Tensor& gy, const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                             at::IntArrayRef padding, at::IntArrayRef dilation, int64_t most);
Products depthwise_products(const Tensor& gy, const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation, int64_t most);
Products position_sums(const Tensor& gy);
Tensor gram_squares(const Tensor& gy, const Tensor& x, int64_t most);
Tensor window_gram_squares(const Tensor& gy, const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation, int64_t most);
Affine batch_norm_backward(const Tensor& gy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                           const Tensor& weight);
Affine group_norm_backward(const Tensor& gy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                           const Tensor& weight);
Affine layer_norm_backward(const Tensor& gy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                           const Tensor& weight);

bool dense(at::TensorList tensors);
c10::List<bool> alike(at::TensorList a, at::TensorList b);
Tensor norms(at::TensorList tensors);
void update(at::TensorList parameters, at::TensorList gradients, at::TensorList buffers, const Tensor& rates,
            double momentum, double weight_decay, bool nesterov, bool rate_in_buffer);

}  // namespace clars
