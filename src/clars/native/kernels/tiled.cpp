// Weight gradients, of examples or groups of them, of convolutions in groups of channels: straight from the input, with
// the channels of a group laid together.

#include <ATen/ops/empty.h>

#include "kernels.h"
#include "tile.h"

namespace clars {
namespace {

// Numbers of the input that stay in the nearest cache while the tiles of a product go over them one by one, and how many
// positions are summed before the sums are added to those of others, which costs fewer digits than one long sum.
constexpr int64_t NEAR = 6144, TERMS = 256;

struct Geometry {
  int64_t channels, outputs;     // of a group
  int64_t height, width;         // of the input
  int64_t rows, columns;         // of the output
  int64_t kernel[2], stride[2], padding[2], dilation[2];

  int64_t padded_height() const { return height + 2 * padding[0]; }
  int64_t padded_width() const { return width + 2 * padding[1]; }
  int64_t taps() const { return kernel[0] * kernel[1]; }
  // What a row of the kernel sees lies together, as a run, unless it is dilated: then what each of its taps sees does.
  int64_t runs_of_row() const { return dilation[1] == 1 ? 1 : kernel[1]; }
  int64_t runs() const { return kernel[0] * runs_of_row(); }
  int64_t run() const { return taps() / runs() * channels; }
  int64_t run_step() const { return (run() + LANES - 1) / LANES * LANES; }
  int64_t weights() const { return outputs * taps() * channels; }
  // Rows of the output, of so many positions, whose input stays near.
  int64_t rows_at_once() const {
    const int64_t near = NEAR / (padded_width() * channels) - (kernel[0] - 1) * dilation[0] - 1;
    return std::clamp<int64_t>(std::min(near / stride[0] + 1, TERMS / columns), 1, rows);
  }
};

// to[j * to_step + i] = from[i * step + j] for a block of 8 by 8.
constexpr int64_t BLOCK = 8;
inline void transpose_block(const float* from, int64_t step, float* to, int64_t to_step) {
#if __has_builtin(__builtin_shufflevector)
  typedef float Row __attribute__((vector_size(4 * BLOCK), aligned(4)));
  const auto row = [&](int64_t i) { return *(const Row*)(from + i * step); };
  const auto low = [](Row a, Row b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13); };
  const auto high = [](Row a, Row b) { return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15); };
  const auto first = [](Row a, Row b) { return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13); };
  const auto second = [](Row a, Row b) { return __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15); };
  Row quarters[2][4];  // of columns 0 to 3, and 4 to 7 behind them, of four rows
#pragma GCC unroll 2
  for (int64_t half = 0; half < 2; half++) {
    const int64_t i = 4 * half;
    const Row a = low(row(i), row(i + 1)), b = low(row(i + 2), row(i + 3));
    const Row c = high(row(i), row(i + 1)), d = high(row(i + 2), row(i + 3));
    quarters[half][0] = first(a, b), quarters[half][1] = second(a, b);
    quarters[half][2] = first(c, d), quarters[half][3] = second(c, d);
  }
#pragma GCC unroll 4
  for (int64_t j = 0; j < 4; j++) {
    const Row a = quarters[0][j], b = quarters[1][j];
    *(Row*)(to + j * to_step) = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    *(Row*)(to + (j + 4) * to_step) = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
#else
  for (int64_t i = 0; i < BLOCK; i++)
    for (int64_t j = 0; j < BLOCK; j++) to[j * to_step + i] = from[i * step + j];
#endif
}

// The product of one group of channels, example after example.
class Product {
 public:
  explicit Product(const Geometry& g)
      : g(g),
        x_(g.padded_height() * g.padded_width() * g.channels + LANES),
        product(g.outputs * g.runs() * g.run_step()),
        total(g.weights()) {}

  // Adds that of x [C, H, W] and gy [P, h, w] of the given strides, or begins with it.
  void add(const float* x, at::IntArrayRef xs, const float* gy, at::IntArrayRef gs, bool begin) {
    lay_out(x, xs);
    const int64_t line = g.padded_width() * g.channels, at_once = g.rows_at_once();
    Layout l{0, g.columns, gs[0], gs[1], gs[2], g.stride[0] * line, g.stride[1] * g.channels, g.runs() * g.run_step()};
    for (int64_t row = 0; row < g.rows; row += at_once) {
      l.lines = std::min(at_once, g.rows - row);
      const float* seen = x_.data() + row * l.b_line;
      for (int64_t run = 0; run < g.runs(); run++) {
        const int64_t h = run / g.runs_of_row() * g.dilation[0], w = run % g.runs_of_row() * g.dilation[1];
        add_tiles(gy + row * gs[1], seen + h * line + w * g.channels, product.data() + run * g.run_step(), g.outputs,
                  g.run(), l, begin && row == 0);
      }
    }
  }

  // Adds the product to the total, or begins that with it; returns its square.
  double finish(bool begin) {
    if (g.run() == g.run_step()) return add_and_square(total.data(), product.data(), total.size(), begin);
    double squares = 0;
    for (int64_t i = 0; i < g.outputs * g.runs(); i++)
      squares += add_and_square(total.data() + i * g.run(), product.data() + i * g.run_step(), g.run(), begin);
    return squares;
  }

  // Writes the total as [P, C, taps].
  void write(float* gradient) const {
    const float* from = total.data();
    for (int64_t p = 0; p < g.outputs; p++, gradient += g.taps() * g.channels)
      for (int64_t tap = 0; tap < g.taps(); tap++)
        for (int64_t c = 0; c < g.channels; c++) gradient[c * g.taps() + tap] = *from++;
  }

 private:
  void lay_out(const float* x, at::IntArrayRef xs) {
    for (int64_t h = 0; h < g.height; h++) {
      float* to = x_.data() + ((h + g.padding[0]) * g.padded_width() + g.padding[1]) * g.channels;
      const float* from = x + h * xs[1];
      if (xs[0] == 1) {
        for (int64_t w = 0; w < g.width; w++)
          for (int64_t c = 0; c < g.channels; c++) to[w * g.channels + c] = from[w * xs[2] + c];
        continue;
      }
      int64_t c = 0;
      if (xs[2] == 1 && g.width >= BLOCK)
        for (; c + BLOCK <= g.channels; c += BLOCK)
          for (int64_t w = 0; w < g.width; w += BLOCK) {
            const int64_t at = std::min(w, g.width - BLOCK);  // the last block may begin within the one before
            transpose_block(from + c * xs[0] + at, xs[0], to + at * g.channels + c, g.channels);
          }
      for (; c < g.channels; c++)
        for (int64_t w = 0; w < g.width; w++) to[w * g.channels + c] = from[c * xs[0] + w * xs[2]];
    }
  }

  const Geometry& g;
  std::vector<float> x_;  // [H, W, C] with its padding, which stays zero
  std::vector<float> product, total;
};

}  // namespace

// The gradient [P, C / groups, *kernel] of a convolution's weight for gy [B, P, h, w] and x [B, C, H, W], summed over the
// examples, and the squared norms of the sums over each group of examples. Threads share the groups of channels, or the
// examples where those are too few.
Products tiled_products(const Tensor& gy, const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                        at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, int64_t most, int64_t group) {
  const int64_t examples = x.size(0), products = groups_of(examples, group);
  const Geometry g{x.size(1) / groups, gy.size(1) / groups, x.size(2), x.size(3), gy.size(2), gy.size(3),
                   {kernel[0], kernel[1]}, {stride[0], stride[1]}, {padding[0], padding[1]}, {dilation[0], dilation[1]}};
  const int64_t workers = workers_for(products * groups, most);
  const int64_t shares = groups % workers == 0 ? 1 : std::min(products, workers);
  Tensor squares = at::empty({groups, products}, x.options());
  Tensor gradients = at::empty({shares, gy.size(1), g.channels, kernel[0], kernel[1]}, x.options());
  float *square = squares.mutable_data_ptr<float>(), *gradient = gradients.mutable_data_ptr<float>();
  const float *x_ = x.const_data_ptr<float>(), *gy_ = gy.const_data_ptr<float>();
  const at::IntArrayRef xs = x.strides(), gs = gy.strides();
  share(shares * groups, workers, [&](int64_t, int64_t from, int64_t to) {
    Product product(g);
    for (int64_t unit = from; unit < to; unit++) {
      const int64_t part = unit / groups, of = unit % groups;
      const int64_t first = part * products / shares, last = (part + 1) * products / shares;
      for (int64_t n = first; n < last; n++) {
        for (int64_t i = n * group; i < std::min((n + 1) * group, examples); i++)
          product.add(x_ + i * xs[0] + of * g.channels * xs[1], xs.slice(1), gy_ + i * gs[0] + of * g.outputs * gs[1],
                      gs.slice(1), i == n * group);
        square[of * products + n] = product.finish(n == first);
      }
      product.write(gradient + unit * g.weights());
    }
  });
  return {shares == 1 ? gradients[0] : gradients.sum(0), squares.sum(0)};
}

}  // namespace clars
