// The squared norms of the examples' weight gradients by the inner products between positions, without the gradients
// (see gram.py), a share of the examples per thread.

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/im2col.h>
#include <ATen/ops/linalg_vecdot.h>
#include <ATen/ops/mm.h>

#include "kernels.h"
#include "tile.h"

namespace clars {
namespace {

constexpr int64_t FEW = 64;  // columns for whose inner products a library's call takes longer than tiles

// The inner products [T, T] between the columns of x [N, T], few of them.
void few_columns(const Tensor& x, float* out) {
  constexpr int64_t NEAR = 4096;  // numbers that stay in the nearest cache while the tiles go over them
  const float* x_ = x.const_data_ptr<float>();
  const int64_t rows = x.size(0), columns = x.size(1), down = x.stride(0), across = x.stride(1);
  const int64_t width = (columns + LANES - 1) / LANES * LANES;
  const int64_t at_once = std::min<int64_t>(128, NEAR / width);  // float32 sums of so many are added to double ones
  std::vector<float> values(at_once * width), part(columns * width);
  std::vector<double> all(columns * width);
  for (int64_t start = 0; start < rows; start += at_once) {
    const int64_t count = std::min(at_once, rows - start);
    for (int64_t row = 0; row < count; row++)
      for (int64_t t = 0; t < columns; t++) values[row * width + t] = x_[(start + row) * down + t * across];
    const Layout layout{1, count, 1, 0, width, 0, width, width};
    for (int64_t s = 0; s < columns; s += TILE_ROWS) {  // those at and behind the diagonal, by whole vectors
      const int64_t from = s / LANES * LANES;
      add_tiles(values.data() + s, values.data() + from, part.data() + s * width + from,
                std::min(TILE_ROWS, columns - s), columns - from, layout, true);
      for (int64_t i = s * width; i < std::min(s + TILE_ROWS, columns) * width; i++) all[i] += part[i];
    }
  }
  for (int64_t s = 0; s < columns; s++)
    for (int64_t t = 0; t < columns; t++) out[s * columns + t] = all[std::min(s, t) * width + std::max(s, t)];
}

// The same for any number of columns.
Tensor gram(const Tensor& x) {
  const int64_t columns = x.size(1);
  if (columns > FEW) {
    const bool across = x.stride(1) == 1;  // for which oneDNN would lay them out anew
    return across ? at::mm(x.t(), x) : times_transposed(x.t(), x.t()).contiguous();
  }
  Tensor out = at::empty({columns, columns}, x.options());
  if (columns == 1 && x.stride(0) == 1) {
    const float* x_ = x.const_data_ptr<float>();
    *out.mutable_data_ptr<float>() = inner(x_, x_, x.size(0));
    return out;
  }
  few_columns(x, out.mutable_data_ptr<float>());
  return out;
}

// What rounding leaves below zero is zero; what is no number stays none.
double not_negative(double square) { return square < 0 ? 0 : square; }

// Those of an axis' input coordinates that a tap sees as it moves: every stride-th from `first` on. Several taps may see
// the same ones, each shifted by some.
struct Phase {
  int64_t first, length;
  std::vector<int64_t> shifts;
};

std::vector<Phase> phases(int64_t length, int64_t taps, int64_t stride, int64_t padding, int64_t dilation) {
  std::vector<Phase> found;
  for (int64_t first = 0; first < std::min(stride, length); first++) {
    Phase phase{first, (length - first + stride - 1) / stride, {}};
    for (int64_t tap = 0; tap < taps; tap++) {
      const int64_t from_first = tap * dilation - padding - first;
      if (from_first % stride == 0) phase.shifts.push_back(from_first / stride);
    }
    if (!phase.shifts.empty()) found.push_back(std::move(phase));
  }
  return found;
}

// One phase of rows and columns of an image [C, H, W], as [C, T].
Tensor positions_in(const Tensor& image, const Phase& down, const Phase& across, at::IntArrayRef stride) {
  if (stride[0] == 1 && stride[1] == 1) return image.flatten(1);
  const int64_t channels = image.size(0), step_h = image.stride(1) * stride[0], step_w = image.stride(2) * stride[1];
  Tensor seen = at::empty({channels, down.length * across.length}, image.options());
  const float* from = image.const_data_ptr<float>() + down.first * image.stride(1) + across.first * image.stride(2);
  float* to = seen.mutable_data_ptr<float>();
  for (int64_t c = 0; c < channels; c++)
    for (int64_t h = 0; h < down.length; h++)
      for (int64_t w = 0; w < across.length; w++) *to++ = from[c * image.stride(0) + h * step_h + w * step_w];
  return seen;
}

// Sums the elements of gram [H, W, H, W] whose two rows have the same shift, into [h, W, h, W].
void sum_rows(const float* gram, float* out, const Phase& down, int64_t width, int64_t rows) {
  std::fill(out, out + rows * width * rows * width, 0.f);
  for (const int64_t shift : down.shifts) {
    const int64_t start = std::max<int64_t>(0, -shift), stop = std::min(rows, down.length - shift);
    if (start >= stop) continue;
    for (int64_t i = start; i < stop; i++)
      for (int64_t w = 0; w < width; w++) {
        float* to = out + ((i * width + w) * rows + start) * width;
        const float* from = gram + (((i + shift) * width + w) * down.length + start + shift) * width;
#pragma omp simd
        for (int64_t j = 0; j < (stop - start) * width; j++) to[j] += from[j];
      }
  }
}

// The same for columns of [h, W, h, W], met with `other` [h, w, h, w]: the inner product of the two.
double columns_inner(const float* gram, const float* other, const Phase& across, int64_t rows, int64_t columns) {
  const int64_t width = across.length;
  double total = 0;
  for (const int64_t shift : across.shifts) {
    const int64_t start = std::max<int64_t>(0, -shift), stop = std::min(columns, width - shift);
    if (start >= stop) continue;
    for (int64_t i = 0; i < rows; i++)
      for (int64_t w = start; w < stop; w++) {
        float sum = 0;
        for (int64_t k = 0; k < rows; k++) {
          const float* a = gram + ((i * width + w + shift) * rows + k) * width + shift;
          const float* b = other + ((i * columns + w) * rows + k) * columns;
#pragma omp simd reduction(+ : sum)
          for (int64_t j = start; j < stop; j++) sum += a[j] * b[j];
        }
        total += sum;
      }
  }
  return total;
}

// x [B, N, T] with the positions of each of the `count` groups of examples from `first` on as those of one: as
// [count, N, group * T].
Tensor merged(const Tensor& x, int64_t first, int64_t count, int64_t group) {
  const Tensor some = x.narrow(0, first, count * group).transpose(1, 2);
  return some.reshape({count, group * x.size(2), x.size(1)}).transpose(1, 2);
}

}  // namespace

// gy [B, P, T], x [B, D, T]: the squared norms of the sums of gy_i x_i^T over each group of examples.
Tensor gram_squares(const Tensor& gy, const Tensor& x, int64_t most, int64_t group) {
  if (group > 1) {
    const int64_t whole = x.size(0) / group, rest = x.size(0) % group;
    const Tensor squares = gram_squares(merged(gy, 0, whole, group), merged(x, 0, whole, group), most, 1);
    if (!rest) return squares;
    const int64_t first = whole * group;
    return at::cat({squares, gram_squares(merged(gy, first, 1, rest), merged(x, first, 1, rest), most, 1)});
  }
  if (x.size(2) == 1) {
    const Tensor a = gy.flatten(1), b = x.flatten(1);
    return at::linalg_vecdot(a, a).mul_(at::linalg_vecdot(b, b));
  }
  Tensor squares = at::empty({x.size(0)}, x.options());
  float* square = squares.mutable_data_ptr<float>();
  share(x.size(0), workers_for(x.size(0), most), [&](int64_t, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const Tensor a = gram(gy.select(0, i)), b = gram(x.select(0, i));
      square[i] = not_negative(inner(a.const_data_ptr<float>(), b.const_data_ptr<float>(), a.numel()));
    }
  });
  return squares;
}

// The same for the windows of a convolution over x [B, C, H, W], gy [B, P, h, w]. Where windows overlap, their inner
// products are sums of single positions', of each phase of the stride by itself; elsewhere they are laid out.
Tensor window_gram_squares(const Tensor& gy, const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation, int64_t most) {
  const int64_t rows = gy.size(2), columns = gy.size(3);
  const auto down = phases(x.size(2), kernel[0], stride[0], padding[0], dilation[0]);
  const auto across = phases(x.size(3), kernel[1], stride[1], padding[1], dilation[1]);
  const bool overlap = int64_t(down.size() * across.size()) < kernel[0] * kernel[1];
  Tensor squares = at::empty({x.size(0)}, x.options());
  float* square = squares.mutable_data_ptr<float>();
  share(x.size(0), workers_for(x.size(0), most), [&](int64_t, int64_t first, int64_t last) {
    std::vector<float> summed;
    for (int64_t i = first; i < last; i++) {
      const Tensor outputs = gram(gy.select(0, i).flatten(1));
      const float* outputs_ = outputs.const_data_ptr<float>();
      double total = 0;
      const Tensor image = x.select(0, i);
      if (!overlap) {
        const Tensor seen = at::im2col(image, kernel, dilation, padding, stride);
        total = inner(gram(seen).const_data_ptr<float>(), outputs_, outputs.numel());
      } else {
        for (const Phase& h : down)
          for (const Phase& w : across) {
            const Tensor inputs = gram(positions_in(image, h, w, stride));
            summed.resize(rows * w.length * rows * w.length);
            sum_rows(inputs.const_data_ptr<float>(), summed.data(), h, w.length, rows);
            total += columns_inner(summed.data(), outputs_, w, rows, columns);
          }
      }
      square[i] = not_negative(total);
    }
  });
  return squares;
}

}  // namespace clars
