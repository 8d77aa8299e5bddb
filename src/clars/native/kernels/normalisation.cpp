// Backward passes of normalisations that yield the examples' parts of the parameters' gradients on their way.

#include <ATen/TensorIterator.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "kernels.h"

namespace clars {
namespace {

// Sums of gy * (x - mean) and of gy over `n` positions.
void centred_sums(const float* gy, const float* x, int64_t n, float mean, double* scale, double* shift) {
  double a = 0, b = 0;
  for (int64_t start = 0; start < n; start += SPAN) {
    const int64_t stop = std::min(n, start + SPAN);
    float sum = 0, plain = 0;
#pragma omp simd reduction(+ : sum, plain)
    for (int64_t i = start; i < stop; i++) {
      sum += gy[i] * (x[i] - mean);
      plain += gy[i];
    }
    a += sum;
    b += plain;
  }
  *scale = a;
  *shift = b;
}

void affine(const float* gy, const float* x, float* out, int64_t n, float of_gy, float of_x, float mean,
            float constant) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = of_gy * gy[i] + of_x * (x[i] - mean) + constant;
}

// Terms [B, N]: their sum over the examples, and the squared norms of the sums over each group of them. Not by torch's
// operators, which take longer than so few numbers.
Products sum_and_squares(const Tensor& terms, int64_t group) {
  const int64_t examples = terms.size(0), size = terms.size(1), groups = groups_of(examples, group);
  Tensor sum = at::empty({size}, terms.options()), squares = at::empty({groups}, terms.options());
  const float* terms_ = terms.const_data_ptr<float>();
  float *sum_ = sum.mutable_data_ptr<float>(), *squares_ = squares.mutable_data_ptr<float>();
  at::parallel_for(0, groups, 1 + at::internal::GRAIN_SIZE / (group * size), [&](int64_t from, int64_t to) {
    std::vector<double> summed(group > 1 ? size : 0);
    for (int64_t u = from; u < to; u++) {
      const float* first = terms_ + u * group * size;
      if (group == 1) {
        squares_[u] = inner(first, first, size);
        continue;
      }
      std::copy(first, first + size, summed.begin());
      for (int64_t i = u * group + 1; i < std::min((u + 1) * group, examples); i++)
        for (int64_t n = 0; n < size; n++) summed[n] += terms_[i * size + n];
      double square = 0;
      for (const double one : summed) square += one * one;
      squares_[u] = square;
    }
  });
  at::parallel_for(0, size, 1 + at::internal::GRAIN_SIZE / examples, [&](int64_t from, int64_t to) {
    std::vector<double> all(to - from);
    for (int64_t i = 0; i < examples; i++)
      for (int64_t n = from; n < to; n++) all[n - from] += terms_[i * size + n];
    std::copy(all.begin(), all.end(), sum_ + from);
  });
  return {sum, squares};
}

// What the backward pass of a normalisation reads, in memory as it is needed, and what it writes: the gradient of x, and
// the examples' parts [B, N] of those of scale and shift.
struct Operands {
  Operands(const Tensor& gy, const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight)
      : means(mean.contiguous()),
        rstds(rstd.contiguous()),
        weights(weight.contiguous()),
        all_gx(at::empty_like(x)),
        scales(at::zeros({x.size(0), weight.numel()}, x.options())),
        shifts(at::zeros_like(scales)),
        gy(gy.const_data_ptr<float>()),
        x(x.const_data_ptr<float>()),
        mean(means.const_data_ptr<float>()),
        rstd(rstds.const_data_ptr<float>()),
        weight(weights.const_data_ptr<float>()),
        gx(all_gx.mutable_data_ptr<float>()),
        scale(scales.mutable_data_ptr<float>()),
        shift(shifts.mutable_data_ptr<float>()) {}

  Affine result(int64_t group) const {
    auto [scale_sum, scale_squares] = sum_and_squares(scales, group);
    auto [shift_sum, shift_squares] = sum_and_squares(shifts, group);
    return {all_gx, scale_sum, shift_sum, scale_squares, shift_squares};
  }

  const Tensor means, rstds, weights, all_gx, scales, shifts;
  const float *const gy, *const x, *const mean, *const rstd, *const weight;
  float *const gx, *const scale, *const shift;
};

// The `n` channels from `first` on of batch normalisation of x and gy [B, C], which has one position per channel; see
// batch_norm_backward.
void batch_norm_columns(const Operands& o, int64_t examples, int64_t channels, int64_t first, int64_t n) {
  const float *mean = o.mean + first, *rstd = o.rstd + first, *weight = o.weight + first;
  std::vector<double> scales(n), shifts(n);
  for (int64_t at = first; at < examples * channels; at += channels)
#pragma omp simd
    for (int64_t c = 0; c < n; c++) {
      o.scale[at + c] = o.gy[at + c] * (o.x[at + c] - mean[c]) * rstd[c];
      o.shift[at + c] = o.gy[at + c];
      scales[c] += o.scale[at + c];
      shifts[c] += o.shift[at + c];
    }
  std::vector<float> of_x(n), constant(n);
  for (int64_t c = 0; c < n; c++) {
    of_x[c] = -rstd[c] * scales[c] / examples;
    constant[c] = -shifts[c] / examples;
  }
  for (int64_t at = first; at < examples * channels; at += channels)
    for (int64_t c = 0; c < n; c++)
      o.gx[at + c] = weight[c] * rstd[c] * (o.gy[at + c] + of_x[c] * (o.x[at + c] - mean[c]) + constant[c]);
}

}  // namespace

// Batch normalisation in training mode, of contiguous x and gy [B, C, ...]; mean, rstd and weight [C].
//
// With N values per channel, scale = sum gy * (x - mean) * rstd and shift = sum gy, the gradient of x is
// weight * rstd * (gy - shift / N - (x - mean) * rstd * scale / N).
// Returns it, scale and shift [C], and the squared norms of each group of examples' parts of scale and of shift.
Affine batch_norm_backward(const Tensor& gy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                           const Tensor& weight, int64_t group) {
  const int64_t examples = x.size(0), channels = x.size(1), positions = x.numel() / (examples * channels);
  const Operands o(gy, x, mean, rstd, weight);
  const double count = double(examples) * positions;
  const int64_t grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE / (examples * positions));
  at::parallel_for(0, channels, grain, [&](int64_t from, int64_t to) {
    if (positions == 1) return batch_norm_columns(o, examples, channels, from, to - from);
    for (int64_t c = from; c < to; c++) {
      double all_scale = 0, all_shift = 0, one_scale, one_shift;
      for (int64_t i = 0; i < examples; i++) {
        const int64_t part = i * channels + c, at = part * positions;
        centred_sums(o.gy + at, o.x + at, positions, o.mean[c], &one_scale, &one_shift);
        one_scale *= o.rstd[c];
        o.scale[part] = one_scale;
        o.shift[part] = one_shift;
        all_scale += one_scale;
        all_shift += one_shift;
      }
      const float of_gy = o.weight[c] * o.rstd[c];
      const float of_x = -of_gy * o.rstd[c] * all_scale / count, constant = -of_gy * all_shift / count;
      for (int64_t i = 0; i < examples; i++) {
        const int64_t at = (i * channels + c) * positions;
        affine(o.gy + at, o.x + at, o.gx + at, positions, of_gy, of_x, o.mean[c], constant);
      }
    }
  });
  return o.result(group);
}

// Group normalisation of contiguous x and gy [B, C, ...]; mean and rstd [B, G], weight [C].
//
// With N values per group, and sums over all of them, the gradient of x is
// rstd * (weight * gy - sum weight * gy / N - (x - mean) * rstd * (sum weight * gy * (x - mean) * rstd) / N).
// Returns it, scale and shift [C], and the squared norms of each group of examples' parts of scale and of shift.
Affine group_norm_backward(const Tensor& gy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                           const Tensor& weight, int64_t group) {
  const int64_t examples = x.size(0), channels = x.size(1), groups = mean.size(1), members = channels / groups;
  const int64_t positions = x.numel() / (examples * channels);
  const Operands o(gy, x, mean, rstd, weight);
  const double count = double(members) * positions;
  const int64_t grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE / (members * positions));
  at::parallel_for(0, examples * groups, grain, [&](int64_t from, int64_t to) {
    for (int64_t one = from; one < to; one++) {
      const int64_t first = one * members;  // of the examples' channels
      const float* weight_of = o.weight + one % groups * members;
      const float mean_of = o.mean[one], rstd_of = o.rstd[one];
      double all_scale = 0, all_shift = 0, one_scale, one_shift;
      for (int64_t c = 0; c < members; c++) {
        const int64_t part = first + c, at = part * positions;
        centred_sums(o.gy + at, o.x + at, positions, mean_of, &one_scale, &one_shift);
        one_scale *= rstd_of;
        o.scale[part] = one_scale;
        o.shift[part] = one_shift;
        all_scale += weight_of[c] * one_scale;
        all_shift += weight_of[c] * one_shift;
      }
      const float of_x = -rstd_of * rstd_of * all_scale / count, constant = -rstd_of * all_shift / count;
      for (int64_t c = 0; c < members; c++) {
        const int64_t at = (first + c) * positions;
        affine(o.gy + at, o.x + at, o.gx + at, positions, weight_of[c] * rstd_of, of_x, mean_of, constant);
      }
    }
  });
  return o.result(group);
}

namespace {

// One row of layer normalisation: its part of scale and shift is added to theirs, and its gradient of x written.
void layer_norm_row(const float* gy, const float* x, const float* weight, float* gx, float* scale, float* shift,
                    int64_t n, float mean, float rstd) {
  float plain = 0, centred = 0;
#pragma omp simd reduction(+ : plain, centred)
  for (int64_t i = 0; i < n; i++) {
    const float normal = (x[i] - mean) * rstd, weighted = gy[i] * weight[i];
    scale[i] += gy[i] * normal;
    shift[i] += gy[i];
    plain += weighted;
    centred += weighted * normal;
  }
  plain /= n;
  centred /= n;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const float normal = (x[i] - mean) * rstd;
    gx[i] = rstd * (gy[i] * weight[i] - plain - normal * centred);
  }
}

}  // namespace

// Layer normalisation of contiguous x and gy [B, T, N]; mean and rstd [B * T], weight [N].
// Returns the gradient of x, scale and shift [N], and the squared norms of each group of examples' parts of the two.
Affine layer_norm_backward(const Tensor& gy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                           const Tensor& weight, int64_t group) {
  const int64_t examples = x.size(0), positions = x.size(1), size = x.size(2);
  const Operands o(gy, x, mean, rstd, weight);
  share(examples, workers_for(examples, examples), [&](int64_t, int64_t first, int64_t last) {
    for (int64_t row = first * positions; row < last * positions; row++) {
      const int64_t at = row * size, part = row / positions * size;
      layer_norm_row(o.gy + at, o.x + at, o.weight, o.gx + at, o.scale + part, o.shift + part, size, o.mean[row],
                     o.rstd[row]);
    }
  });
  return o.result(group);
}

namespace {

// Sums of gy [P, T] over its positions, which lie together or whose outputs do, into sums [P].
void sum_positions(const float* gy, int64_t outputs, int64_t positions, int64_t step_p, int64_t step_t, float* sums) {
  if (step_t == 1) {
    for (int64_t p = 0; p < outputs; p++) {
      double all = 0;
      for (int64_t start = 0; start < positions; start += SPAN) {
        const float* from = gy + p * step_p + start;
        const int64_t n = std::min(positions - start, SPAN);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t t = 0; t < n; t++) sum += from[t];
        all += sum;
      }
      sums[p] = all;
    }
    return;
  }
  constexpr int64_t FEW = 128;  // float32 sums of so many are added to double ones
  std::vector<float> some(outputs);
  std::vector<double> all(outputs);
  for (int64_t start = 0; start < positions; start += FEW) {
    std::fill(some.begin(), some.end(), 0.f);
    for (int64_t t = start; t < std::min(positions, start + FEW); t++) {
      const float* from = gy + t * step_t;
      if (step_p == 1)
#pragma omp simd
        for (int64_t p = 0; p < outputs; p++) some[p] += from[p];
      else
        for (int64_t p = 0; p < outputs; p++) some[p] += from[p * step_p];
    }
    for (int64_t p = 0; p < outputs; p++) all[p] += some[p];
  }
  std::copy(all.begin(), all.end(), sums);
}

}  // namespace

// The gradient [P] of a vector that is added at each position, for gy [B, P, T], and the squared norms of each group of
// examples' parts of it.
Products position_sums(const Tensor& gy, int64_t group) {
  const int64_t examples = gy.size(0), outputs = gy.size(1), positions = gy.size(2);
  Tensor sums = at::empty({examples, outputs}, gy.options());
  const float* gy_ = gy.const_data_ptr<float>();
  float* sums_ = sums.mutable_data_ptr<float>();
  share(examples, workers_for(examples, examples), [&](int64_t, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++)
      sum_positions(gy_ + i * gy.stride(0), outputs, positions, gy.stride(1), gy.stride(2), sums_ + i * outputs);
  });
  return sum_and_squares(sums, group);
}

}  // namespace clars
