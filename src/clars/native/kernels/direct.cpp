// Weight gradients, of examples or groups, of small convolutions, where a call of a library's takes longer than its arithmetic.

#include <ATen/ops/empty.h>

#include <cstring>

#include "kernels.h"

namespace clars {
namespace {

// A tile of a product that fits the registers: outputs by columns.
constexpr int64_t TILE_P = 6, TILE_D = 16;
typedef float Vector __attribute__((vector_size(4 * TILE_D), aligned(4)));

// Positions laid out at a time, as many as leave their windows in the cache.
constexpr int64_t WINDOWS = 1 << 14;

int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// product [P, D] += gy^T x for gy [T, P] and x [T, D]; P and D are whole numbers of tiles.
void multiply(const float* gy, const float* x, float* product, int64_t positions, int64_t outputs, int64_t columns) {
  for (int64_t d = 0; d < columns; d += TILE_D)
    for (int64_t p = 0; p < outputs; p += TILE_P) {
      Vector tile[TILE_P];
#pragma GCC unroll 8
      for (int64_t k = 0; k < TILE_P; k++) tile[k] = *(const Vector*)(product + (p + k) * columns + d);
      for (int64_t t = 0; t < positions; t++) {
        const Vector row = *(const Vector*)(x + t * columns + d);
#pragma GCC unroll 8
        for (int64_t k = 0; k < TILE_P; k++) tile[k] += gy[t * outputs + p + k] * row;
      }
#pragma GCC unroll 8
      for (int64_t k = 0; k < TILE_P; k++) *(Vector*)(product + (p + k) * columns + d) = tile[k];
    }
}

// Adds `n` numbers to `total`, or begins it with them.
void add(float* total, const float* product, int64_t n, bool begin) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) total[i] = begin ? product[i] : total[i] + product[i];
}

// Adds the rows of product [P, D] to total [P, N], N <= D, or begins it; returns the sum of their squares.
double add_rows_and_square(float* total, const float* product, int64_t rows, int64_t n, int64_t columns, bool begin) {
  double squares = 0;
  for (int64_t p = 0; p < rows; p++) squares += add_and_square(total + p * n, product + p * columns, n, begin);
  return squares;
}

// out[t * step + i] = x [N, T], of any strides.
void lay_out(const float* x, float* out, int64_t n, int64_t positions, int64_t stride_n, int64_t stride_t,
             int64_t step) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t t = 0; t < positions; t++) out[t * step + i] = x[i * stride_n + t * stride_t];
}

inline void copy(const float* from, float* to, int64_t n) {
  for (; n >= TILE_D; n -= TILE_D, from += TILE_D, to += TILE_D) *(Vector*)to = *(const Vector*)from;
  for (int64_t i = 0; i < n; i++) to[i] = from[i];
}

struct Geometry {
  int64_t channels, height, width;  // of the input with its padding
  int64_t rows, columns;            // of the output
  int64_t kernel[2], stride[2], dilation[2];
};

// What the kernel sees at the positions of rows `first` to `last` of x [H, W, C] with its padding around it, as [T, D],
// columns (tap, channel).
void windows(const float* x, float* out, const Geometry& g, int64_t first, int64_t last, int64_t step) {
  // The taps of a kernel's row lie side by side unless they are dilated.
  const int64_t pieces = g.dilation[1] == 1 ? 1 : g.kernel[1], size = g.kernel[1] / pieces * g.channels;
  for (int64_t row = first; row < last; row++)
    for (int64_t column = 0; column < g.columns; column++, out += step) {
      float* to = out;
      for (int64_t kh = 0; kh < g.kernel[0]; kh++)
        for (int64_t kw = 0; kw < pieces; kw++, to += size) {
          const int64_t h = row * g.stride[0] + kh * g.dilation[0], w = column * g.stride[1] + kw * g.dilation[1];
          copy(x + (h * g.width + w) * g.channels, to, size);
        }
    }
}

}  // namespace

// The gradient [P, C, *kernel] of a convolution's weight for gy [B, P, h, w] and x [B, C, H, W], summed over the
// examples, and the squared norms of the sums over each group of examples.
Products small_conv_products(const Tensor& gy, const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                             at::IntArrayRef padding, at::IntArrayRef dilation, int64_t most, int64_t group) {
  const int64_t examples = x.size(0), outputs = gy.size(1), groups = groups_of(examples, group);
  const Geometry g{x.size(1), x.size(2) + 2 * padding[0], x.size(3) + 2 * padding[1], gy.size(2), gy.size(3),
                   {kernel[0], kernel[1]}, {stride[0], stride[1]}, {dilation[0], dilation[1]}};
  const int64_t positions = g.rows * g.columns;
  const int64_t taps = g.kernel[0] * g.kernel[1], wanted = taps * g.channels;
  const int64_t step_p = rounded_up(outputs, TILE_P), step_d = rounded_up(wanted, TILE_D);
  const int64_t at_once = std::clamp<int64_t>(WINDOWS / (step_d * g.columns), 1, g.rows);  // rows
  const int64_t workers = workers_for(groups, most);
  const Tensor gy_ = gy.flatten(2);
  Tensor squares = at::empty({groups}, x.options());
  Tensor totals = at::empty({workers, outputs, wanted}, x.options());
  float *square = squares.mutable_data_ptr<float>(), *totals_ = totals.mutable_data_ptr<float>();
  const float *gy_data = gy_.const_data_ptr<float>(), *x_data = x.const_data_ptr<float>();
  const at::IntArrayRef gs = gy_.strides(), xs = x.strides();
  share(groups, workers, [&](int64_t worker, int64_t first, int64_t last) {
    // The padding of x stays zero; that of outputs and columns reaches only products that nobody reads.
    std::vector<float> gy_t(positions * step_p), x_t(g.height * g.width * g.channels), seen(at_once * g.columns * step_d);
    // Examples of a group are added up one by one: a single sum over all their positions would lose digits.
    std::vector<float> product(step_p * step_d), summed(group > 1 ? step_p * step_d : 0);
    float* total = totals_ + worker * outputs * wanted;
    for (int64_t i = first * group; i < std::min(last * group, examples); i++) {
      lay_out(gy_data + i * gs[0], gy_t.data(), outputs, positions, gs[1], gs[2], step_p);
      for (int64_t h = 0; h < x.size(2); h++)
        lay_out(x_data + i * xs[0] + h * xs[2], x_t.data() + ((h + padding[0]) * g.width + padding[1]) * g.channels,
                g.channels, x.size(3), xs[1], xs[3], g.channels);
      std::fill(product.begin(), product.end(), 0.f);
      for (int64_t row = 0; row < g.rows; row += at_once) {
        const int64_t stop = std::min(g.rows, row + at_once);
        windows(x_t.data(), seen.data(), g, row, stop, step_d);
        multiply(gy_t.data() + row * g.columns * step_p, seen.data(), product.data(), (stop - row) * g.columns, step_p,
                 step_d);
      }
      if (group > 1) add(summed.data(), product.data(), product.size(), i % group == 0);
      if ((i + 1) % group == 0 || i + 1 == examples)
        square[i / group] = add_rows_and_square(total, group > 1 ? summed.data() : product.data(), outputs, wanted,
                                                step_d, i / group == first);
    }
  });
  const Tensor gradient = workers == 1 ? totals[0] : totals.sum(0);
  return {gradient.view({outputs, taps, g.channels}).transpose(1, 2).reshape({outputs, g.channels, g.kernel[0], g.kernel[1]}),
          squares};
}

}  // namespace clars
