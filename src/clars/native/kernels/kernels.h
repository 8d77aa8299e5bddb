// The kernels, each described where it is defined.
#pragma once

#include <ATen/core/List.h>

#include "parallel.h"

namespace clars {

using Products = std::tuple<Tensor, Tensor>;                       // a gradient, and squared norms of its parts
using Affine = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // gradients of x, scale, shift; squares of the two

// How many groups so many examples make up, of which the last may be smaller.
inline int64_t groups_of(int64_t examples, int64_t group) { return (examples + group - 1) / group; }

// The examples whose squared norms are wanted, or those of the sums over groups of consecutive ones; the gradient is
// that of all. Where there are groups, all are wanted.
struct Measured {
  int64_t first, last;
  int64_t group = 1;

  int64_t norms() const { return groups_of(last - first, group); }
  Tensor of(const Tensor& all) const {
    return group > 1 || (first == 0 && last == all.size(0)) ? all : all.narrow(0, first, last - first);
  }
  Products of(Products all) const { return {std::get<0>(all), of(std::get<1>(all))}; }
};

Tensor times_transposed(const Tensor& a, const Tensor& b);
Products matrix_products(const Tensor& gy, const Tensor& x, int64_t most, Measured measured);
Tensor points(const Tensor& x, at::IntArrayRef stride);
Products pointwise_products(const Tensor& gy, const Tensor& x, const Tensor& weight, at::IntArrayRef stride,
                            int64_t most, Measured measured);
Tensor pointwise_input(const Tensor& gy, const Tensor& weight);
Products conv_products(const Tensor& gy, const Tensor& x, const Tensor& weight, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, int64_t most, Measured measured);
Products small_conv_products(const Tensor& gy, const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                             at::IntArrayRef padding, at::IntArrayRef dilation, int64_t most, int64_t group);
Products depthwise_products(const Tensor& gy, const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation, int64_t most, int64_t group);
Products tiled_products(const Tensor& gy, const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                        at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, int64_t most, int64_t group);
Products position_sums(const Tensor& gy, int64_t group);
Tensor gram_squares(const Tensor& gy, const Tensor& x, int64_t most, int64_t group);
Tensor window_gram_squares(const Tensor& gy, const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation, int64_t most);
Affine batch_norm_backward(const Tensor& gy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                           const Tensor& weight, int64_t group);
Affine group_norm_backward(const Tensor& gy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                           const Tensor& weight, int64_t group);
Affine layer_norm_backward(const Tensor& gy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                           const Tensor& weight, int64_t group);

bool dense(at::TensorList tensors);
c10::List<bool> alike(at::TensorList a, at::TensorList b);
Tensor norms(at::TensorList tensors);
void update(at::TensorList parameters, at::TensorList gradients, at::TensorList buffers, const Tensor& rates,
            double momentum, double weight_decay, bool nesterov, bool rate_in_buffer);

}  // namespace clars
