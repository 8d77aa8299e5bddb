// Weight gradients of examples or groups of them: formed one by one, in parallel; squared and added while they are in
// the cache.

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <bit>

#include "kernels.h"

namespace clars {
namespace {

// Whether the positions of the examples of x [B, N, T] follow one another in memory.
bool positions_follow(const Tensor& x) { return x.size(0) == 1 || x.stride(0) == x.size(2) * x.stride(2); }

// Then all of them, as [N, B * T].
Tensor all_positions(const Tensor& x) {
  return x.as_strided({x.size(1), x.size(0) * x.size(2)}, {x.stride(1), x.stride(2)});
}

// Whether the library behind at::mm is the faster one: Intel's own is, on Intel's processors.
bool prefers_mm() {
#ifdef __x86_64__
  static const bool intel = __builtin_cpu_is("intel");
  return intel;
#else
  return false;
#endif
}

}  // namespace

// a [M, T] times b^T [T, N]. Elsewhere oneDNN is faster where the product is not small; its calls take longer.
Tensor times_transposed(const Tensor& a, const Tensor& b) {
  constexpr double SMALL = 4e5;
  if (prefers_mm() || 2.0 * a.size(0) * a.size(1) * b.size(0) < SMALL) return at::mm(a, b.t());
  using Linear = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, c10::string_view,
                        c10::List<std::optional<at::Scalar>>, std::optional<c10::string_view>);
  static const auto linear =
      c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", "").typed<Linear>();
  return linear.call(a, b, std::nullopt, "none", c10::List<std::optional<at::Scalar>>(), "");
}

namespace {

// gy [B, P, T], x [B, D, T]: the sum of gy_i x_i^T [P, D].
Tensor sum_of_products(const Tensor& gy, const Tensor& x) {
  if (positions_follow(gy) && positions_follow(x)) return times_transposed(all_positions(gy), all_positions(x));
  Tensor sum = times_transposed(gy.select(0, 0), x.select(0, 0));
  for (int64_t i = 1; i < x.size(0); i++) sum.addmm_(gy.select(0, i), x.select(0, i).t());
  return sum;
}

// The sum of the examples' products, of the given shape, and the squared norm of each that is measured, or of the sum
// over each group. sum(first, last) returns the sum over some examples.
template <typename Sum>
Products sum_and_squares(int64_t examples, at::IntArrayRef shape, const Tensor& like, int64_t most, Measured measured,
                         const Sum& sum) {
  const int64_t groups = groups_of(examples, measured.group), workers = workers_for(groups, most);
  Tensor squares = at::empty({measured.norms()}, like.options());
  std::vector<Tensor> totals(workers);
  float* square = squares.mutable_data_ptr<float>();
  const auto sum_of = [&](int64_t from, int64_t to) {
    return sum(from * measured.group, std::min(to * measured.group, examples));
  };
  share(groups, workers, [&](int64_t worker, int64_t first, int64_t last) {
    Tensor& total = totals[worker];
    const auto unmeasured = [&](int64_t from, int64_t to) {
      if (from < to) total = total.defined() ? total.add_(sum_of(from, to)) : sum_of(from, to).contiguous();
    };
    const int64_t begin_at = measured.first / measured.group, end_at = begin_at + measured.norms();
    const int64_t from = std::clamp(begin_at, first, last), to = std::clamp(end_at, first, last);
    unmeasured(first, from);
    for (int64_t i = from; i < to; i++) {
      const Tensor one = sum_of(i, i + 1).contiguous();
      const bool begin = !total.defined();
      if (begin) total = at::empty(shape, like.options());
      square[i - begin_at] =
          add_and_square(total.mutable_data_ptr<float>(), one.const_data_ptr<float>(), one.numel(), begin);
    }
    unmeasured(to, last);
  });
  for (int64_t worker = 1; worker < workers; worker++) totals[0].add_(totals[worker]);
  return {totals[0], squares};
}

}  // namespace

// gy [B, P, T], x [B, D, T]: the sum of gy_i x_i^T [P, D], and the squared norms of those that are measured.
Products matrix_products(const Tensor& gy, const Tensor& x, int64_t most, Measured measured) {
  return sum_and_squares(x.size(0), {gy.size(1), x.size(1)}, x, most, measured, [&](int64_t first, int64_t last) {
    return sum_of_products(gy.narrow(0, first, last - first), x.narrow(0, first, last - first));
  });
}

// What a kernel of one position sees of x [B, D, *size], as [B, D, T].
Tensor points(const Tensor& x, at::IntArrayRef stride) {
  Tensor seen = x;
  for (size_t axis = 0; axis < stride.size(); axis++)
    if (stride[axis] > 1) seen = seen.slice(2 + axis, std::nullopt, std::nullopt, stride[axis]);
  return seen.flatten(2);
}

// The gradient [P, D, *kernel] of the weight of such a convolution for gy [B, P, *size] and x [B, D, *size], and the
// squared norms [B].
Products pointwise_products(const Tensor& gy, const Tensor& x, const Tensor& weight, at::IntArrayRef stride,
                            int64_t most, Measured measured) {
  auto [gradient, squares] = matrix_products(gy.flatten(2), points(x, stride), most, measured);
  return {gradient.view(weight.sizes()), squares};
}

// The gradient of the input of such a convolution of stride 1, for contiguous gy [B, P, *size] and its weight
// [P, D, *kernel]. Of few positions those of all examples make one product, for which they are laid together.
Tensor pointwise_input(const Tensor& gy, const Tensor& weight) {
  constexpr int64_t FEW = 36;
  const int64_t examples = gy.size(0), inputs = weight.size(1);
  const Tensor transposed = weight.flatten(1).t(), by_example = gy.flatten(2);
  std::vector<int64_t> sizes = gy.sizes().vec();
  sizes[1] = inputs;
  if (by_example.size(2) > FEW)
    return at::bmm(transposed.expand({examples, inputs, gy.size(1)}), by_example).view(sizes);
  const Tensor together = times_transposed(by_example.transpose(1, 2).reshape({-1, gy.size(1)}), transposed);
  return together.view({examples, -1, inputs}).transpose(1, 2).contiguous().view(sizes);
}

// The gradient of any convolution's weight and the squared norms, each example's by a call of the convolution's backward
// pass. The others are taken by powers of two, because the library compiles anew, and keeps, what it does for each number
// of examples.
Products conv_products(const Tensor& gy, const Tensor& x, const Tensor& weight, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, int64_t most,
                       Measured measured) {
  const std::vector<int64_t> none(stride.size(), 0);
  const auto piece = [&](int64_t first, int64_t n) {
    return std::get<1>(at::convolution_backward(gy.narrow(0, first, n), x.narrow(0, first, n), weight,
                                                at::OptionalIntArrayRef(), stride, padding, dilation, false, none,
                                                groups, {false, true, false}));
  };
  return sum_and_squares(x.size(0), weight.sizes(), x, most, measured, [&](int64_t first, int64_t last) {
    Tensor sum;
    while (first < last) {
      const int64_t n = std::bit_floor(uint64_t(last - first));
      sum = sum.defined() ? sum.add_(piece(first, n)) : piece(first, n);
      first += n;
    }
    return sum;
  });
}

}  // namespace clars
