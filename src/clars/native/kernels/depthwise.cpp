// Weight gradients, of examples or groups, of depthwise convolutions: every output channel sees one input channel.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <optional>

#include "kernels.h"

namespace clars {
namespace {

constexpr int64_t LANES = 16;
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));

// Taps whose sums are in registers at a time: kernels of 9, 25 and 49 taps are nearly whole numbers of them.
constexpr int64_t TOGETHER = 5;

struct Geometry {
  int64_t height, width, rows, columns;  // of the input without padding, and of the output
  int64_t kernel[2], stride[2], padding[2], dilation[2];

  int64_t taps() const { return kernel[0] * kernel[1]; }
  // The padded input, cut into stride[0] * stride[1] images of every so manieth row and column.
  int64_t part_height() const { return (height + 2 * padding[0] + stride[0] - 1) / stride[0]; }
  int64_t part_width() const { return (width + 2 * padding[1] + stride[1] - 1) / stride[1]; }
};

int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

inline void copy(const float* from, int64_t step, int64_t n, float* to) {
  if (step == 1)
    for (int64_t i = 0; i < n; i++) to[i] = from[i];
  else if (step == 2)
    for (int64_t i = 0; i < n; i++) to[i] = from[2 * i];
  else
    for (int64_t i = 0; i < n; i++) to[i] = from[i * step];
}

// The taps' places, filled up by repetitions of the last to a whole number of TOGETHER.
template <typename Place>
std::vector<int64_t> places(const Geometry& g, const Place& place) {
  std::vector<int64_t> found;
  for (int64_t kh = 0; kh < g.kernel[0]; kh++)
    for (int64_t kw = 0; kw < g.kernel[1]; kw++) found.push_back(place(kh * g.dilation[0], kw * g.dilation[1]));
  found.resize(rounded_up(found.size(), TOGETHER), found.back());
  return found;
}

// An example whose channels are images of their own. A tap's product is the inner product of the output gradient with
// the part of the input that the tap sees, shifted; with the rows of both as far apart, one inner product of all rows.
class Planes {
 public:
  explicit Planes(const Geometry& g)
      : g(g),
        part(g.part_height() * g.part_width()),
        length(rounded_up((g.rows - 1) * g.part_width() + g.columns, LANES)),
        seen_at(places(g, [&](int64_t h, int64_t w) {
          return (h % g.stride[0] * g.stride[1] + w % g.stride[1]) * part + h / g.stride[0] * g.part_width() +
                 w / g.stride[1];
        })),
        x_(part * g.stride[0] * g.stride[1] + length),
        gy_(length) {}

  // product [P, taps] += that of x [C, H, W] and gy [P, h, w] of the given strides.
  void operator()(const float* x, at::IntArrayRef xs, const float* gy, at::IntArrayRef gs, int64_t channels,
                  int64_t outputs, float* product) {
    const int64_t each = outputs / channels;
    for (int64_t c = 0; c < channels; c++, x += xs[0]) {
      lay_out_input(x, xs);
      for (int64_t p = 0; p < each; p++, gy += gs[0], product += g.taps()) {
        for (int64_t row = 0; row < g.rows; row++)
          copy(gy + row * gs[1], gs[2], g.columns, gy_.data() + row * g.part_width());
        multiply(product);
      }
    }
  }

 private:
  void lay_out_input(const float* x, at::IntArrayRef xs) {
    for (int64_t row = 0; row < g.height; row++) {
      const int64_t h = row + g.padding[0];
      const float* from = x + row * xs[1];
      float* images = x_.data() + h % g.stride[0] * g.stride[1] * part + h / g.stride[0] * g.part_width();
      for (int64_t w = 0; w < g.stride[1]; w++) {  // the first column that belongs to image w
        const int64_t first = (w - g.padding[1] % g.stride[1] + g.stride[1]) % g.stride[1];
        const int64_t n = (g.width - first + g.stride[1] - 1) / g.stride[1];
        copy(from + first * xs[2], xs[2] * g.stride[1], n, images + w * part + (first + g.padding[1]) / g.stride[1]);
      }
    }
  }

  void multiply(float* product) const {
    for (int64_t tap = 0; tap < g.taps(); tap += TOGETHER) {
      Vector sums[TOGETHER] = {};
      for (int64_t i = 0; i < length; i += LANES) {
        const Vector gy = *(const Vector*)(gy_.data() + i);
#pragma GCC unroll 8
        for (int64_t k = 0; k < TOGETHER; k++) sums[k] += gy * *(const Vector*)(x_.data() + seen_at[tap + k] + i);
      }
      for (int64_t k = 0; k < TOGETHER && tap + k < g.taps(); k++) {
        const float* lanes = (const float*)&sums[k];
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t lane = 0; lane < LANES; lane++) sum += lanes[lane];
        product[tap + k] += sum;
      }
    }
  }

  const Geometry& g;
  const int64_t part, length;
  const std::vector<int64_t> seen_at;
  std::vector<float> x_, gy_;  // the padding of x and the gaps between the rows of gy stay zero
};

// An example's channels, as many at a time as a vector has lanes: laid together if they are not, which pays for small
// images.
class Lanes {
 public:
  explicit Lanes(const Geometry& g)
      : g(g),
        width(g.width + 2 * g.padding[1]),
        seen_at(places(g, [&](int64_t h, int64_t w) { return (h * width + w) * LANES; })),
        x_((g.height + 2 * g.padding[0]) * width * LANES),
        gy_(g.rows * g.columns * LANES),
        sums(seen_at.size()) {}

  // product [C, taps] += that of x [C, H, W] and gy [C, h, w] of the given strides.
  void operator()(const float* x, at::IntArrayRef xs, const float* gy, at::IntArrayRef gs, int64_t channels,
                  float* product) {
    for (int64_t c = 0; c < channels; c += LANES) {
      const int64_t lanes = std::min(LANES, channels - c);
      for (int64_t row = 0; row < g.height; row++)
        lay_out(x + c * xs[0] + row * xs[1], g.width, xs[2], xs[0], lanes,
                x_.data() + ((row + g.padding[0]) * width + g.padding[1]) * LANES);
      for (int64_t row = 0; row < g.rows; row++)
        lay_out(gy + c * gs[0] + row * gs[1], g.columns, gs[2], gs[0], lanes, gy_.data() + row * g.columns * LANES);
      std::fill(sums.begin(), sums.end(), Vector{});
      for (int64_t row = 0; row < g.rows; row++) add_row(row);
      for (int64_t lane = 0; lane < lanes; lane++)
        for (int64_t tap = 0; tap < g.taps(); tap++) product[(c + lane) * g.taps() + tap] += sums[tap][lane];
    }
  }

 private:
  static void lay_out(const float* from, int64_t positions, int64_t step, int64_t channel_step, int64_t lanes,
                      float* to) {
    for (int64_t i = 0; i < positions; i++, from += step, to += LANES)
      if (lanes == LANES && channel_step == 1)
        *(Vector*)to = *(const Vector*)from;
      else
        for (int64_t lane = 0; lane < LANES; lane++) to[lane] = lane < lanes ? from[lane * channel_step] : 0;
  }

  void add_row(int64_t row) {
    const float *x = x_.data() + row * g.stride[0] * width * LANES, *gy = gy_.data() + row * g.columns * LANES;
    for (int64_t tap = 0; tap < int64_t(sums.size()); tap += TOGETHER) {
      Vector some[TOGETHER];
#pragma GCC unroll 8
      for (int64_t k = 0; k < TOGETHER; k++) some[k] = sums[tap + k];
      for (int64_t column = 0; column < g.columns; column++) {
        const Vector one = *(const Vector*)(gy + column * LANES);
        const float* at = x + column * g.stride[1] * LANES;
#pragma GCC unroll 8
        for (int64_t k = 0; k < TOGETHER; k++) some[k] += one * *(const Vector*)(at + seen_at[tap + k]);
      }
#pragma GCC unroll 8
      for (int64_t k = 0; k < TOGETHER; k++) sums[tap + k] = some[k];
    }
  }

  const Geometry& g;
  const int64_t width;
  const std::vector<int64_t> seen_at;
  std::vector<float> x_, gy_;  // the padding of x stays zero
  std::vector<Vector> sums;
};

}  // namespace

// The gradient [P, 1, *kernel] of a depthwise convolution's weight for gy [B, P, h, w] and x [B, C, H, W], P a multiple
// of C, summed over the examples, and the squared norms of the sums over each group of examples. Of few groups, several
// threads share the channels of one.
Products depthwise_products(const Tensor& gy, const Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation, int64_t most, int64_t group) {
  const int64_t examples = x.size(0), channels = x.size(1), outputs = gy.size(1);
  const Geometry g{x.size(2),  x.size(3),  gy.size(2),  gy.size(3),   {kernel[0], kernel[1]},
                   {stride[0], stride[1]}, {padding[0], padding[1]}, {dilation[0], dilation[1]}};
  const bool together =
      x.is_contiguous(at::MemoryFormat::ChannelsLast) && gy.is_contiguous(at::MemoryFormat::ChannelsLast);
  // Planes take the rows of large images a vector at a time; every other column they have to gather.
  const bool gathers = channels >= LANES && (stride[0] > 1 || stride[1] > 1 || g.height * g.width <= 400);
  const bool by_lanes = channels == outputs && channels > 1 && (together || gathers);
  const int64_t groups = groups_of(examples, group), workers = workers_for(examples, most), each = outputs / channels;
  const bool few = group > 1 && groups < 2 * workers && groups % workers;
  const int64_t some = rounded_up(few ? groups_of(channels, workers) : channels, by_lanes ? LANES : 1);
  const int64_t parts = groups_of(channels, some);
  Tensor squares = at::empty({groups, parts}, x.options()), totals = at::zeros({workers, outputs * g.taps()}, x.options());
  float *square = squares.mutable_data_ptr<float>(), *totals_ = totals.mutable_data_ptr<float>();
  const float *x_ = x.const_data_ptr<float>(), *gy_ = gy.const_data_ptr<float>();
  const at::IntArrayRef xs = x.strides(), gs = gy.strides();
  share(groups * parts, workers, [&](int64_t worker, int64_t first, int64_t last) {
    std::optional<Planes> planes;
    std::optional<Lanes> lanes;
    by_lanes ? void(lanes.emplace(g)) : void(planes.emplace(g));
    std::vector<float> product(some * each * g.taps());
    for (int64_t unit = first; unit < last; unit++) {
      const int64_t channel = unit % parts * some, n = std::min(some, channels - channel);
      std::fill(product.begin(), product.end(), 0.f);
      for (int64_t i = unit / parts * group; i < std::min((unit / parts + 1) * group, examples); i++) {
        const float *from = x_ + i * xs[0] + channel * xs[1], *gy_from = gy_ + i * gs[0] + channel * each * gs[1];
        if (by_lanes)
          (*lanes)(from, xs.slice(1), gy_from, gs.slice(1), n, product.data());
        else
          (*planes)(from, xs.slice(1), gy_from, gs.slice(1), n, n * each, product.data());
      }
      float* total = totals_ + (worker * outputs + channel * each) * g.taps();
      square[unit] = add_and_square(total, product.data(), n * each * g.taps(), false);
    }
  });
  const Tensor gradient = workers == 1 ? totals[0] : totals.sum(0);
  return {gradient.view({outputs, 1, g.kernel[0], g.kernel[1]}), parts == 1 ? squares.select(1, 0) : squares.sum(1)};
}

}  // namespace clars
