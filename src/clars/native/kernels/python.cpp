// What Python sees of the kernels.

#include <torch/library.h>

#include "kernels.h"

namespace clars {
namespace {

Measured all(const Tensor& x, int64_t group) { return {0, x.size(0), group}; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(clars, m) {
  m.def("matrix_products(Tensor gy, Tensor x, int most, int group) -> (Tensor, Tensor)");
  m.def(
      "conv_products(Tensor gy, Tensor x, Tensor weight, int[] stride, int[] padding, int[] dilation, int groups, "
      "int most, int group) -> (Tensor, Tensor)");
  m.def("gram_squares(Tensor gy, Tensor x, int most, int group) -> Tensor");
  m.def(
      "window_gram_squares(Tensor gy, Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, int most) -> "
      "Tensor");
  m.def(
      "small_conv_products(Tensor gy, Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, int most, "
      "int group) -> (Tensor, Tensor)");
  m.def(
      "depthwise_products(Tensor gy, Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, int most, "
      "int group) -> (Tensor, Tensor)");
  m.def(
      "tiled_products(Tensor gy, Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, int groups, "
      "int most, int group) -> (Tensor, Tensor)");
  m.def("position_sums(Tensor gy, int group) -> (Tensor, Tensor)");
  m.def("dense(Tensor[] tensors) -> bool", dense);
  m.def("alike(Tensor[] a, Tensor[] b) -> bool[]", alike);
  m.def("norms(Tensor[] tensors) -> Tensor");
  m.def(
      "update(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] buffers, Tensor rates, float momentum, float "
      "weight_decay, bool nesterov, bool rate_in_buffer) -> ()");
}

TORCH_LIBRARY_IMPL(clars, CPU, m) {
  m.impl("matrix_products", [](const Tensor& gy, const Tensor& x, int64_t most, int64_t group) {
    return matrix_products(gy, x, most, all(x, group));
  });
  m.impl("conv_products",
         [](const Tensor& gy, const Tensor& x, const Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
            at::IntArrayRef dilation, int64_t groups, int64_t most, int64_t group) {
           return conv_products(gy, x, weight, stride, padding, dilation, groups, most, all(x, group));
         });
  m.impl("gram_squares", gram_squares);
  m.impl("window_gram_squares", window_gram_squares);
  m.impl("small_conv_products", small_conv_products);
  m.impl("depthwise_products", depthwise_products);
  m.impl("tiled_products", tiled_products);
  m.impl("position_sums", position_sums);
  m.impl("norms", norms);
  m.impl("update", update);
}

}  // namespace clars
