// The optimizer's passes over all tensors at once: norms, and the momentum update in one pass through memory.

#include <ATen/ops/empty.h>

#include <cmath>

#include "kernels.h"

namespace clars {
namespace {

// Numbers that a thread takes at a time.
constexpr int64_t BLOCK = 1 << 15;

struct Block {
  int64_t tensor, start, stop;
};

std::vector<Block> blocks_of(at::TensorList tensors) {
  std::vector<Block> blocks;
  for (int64_t k = 0; k < int64_t(tensors.size()); k++)
    for (int64_t start = 0; start < tensors[k].numel(); start += BLOCK)
      blocks.push_back({k, start, std::min(start + BLOCK, tensors[k].numel())});
  return blocks;
}

bool flat(const Tensor& x) {
  return x.device().is_cpu() && x.scalar_type() == at::kFloat && x.is_non_overlapping_and_dense();
}

}  // namespace

// Whether these kernels can walk through each tensor's memory.
bool dense(at::TensorList tensors) { return std::all_of(tensors.begin(), tensors.end(), flat); }

// Whether they can walk through the memory of each tensor of `a` and of its partner in `b` together.
c10::List<bool> alike(at::TensorList a, at::TensorList b) {
  c10::List<bool> found;
  for (size_t k = 0; k < a.size(); k++)
    found.push_back(flat(a[k]) && flat(b[k]) && a[k].sizes() == b[k].sizes() &&
                    (a[k].strides() == b[k].strides() || (a[k].is_contiguous() && b[k].is_contiguous())));
  return found;
}

// The 2-norms [number of tensors] of tensors without gaps; the same to the last bit on any number of threads.
Tensor norms(at::TensorList tensors) {
  const std::vector<Block> blocks = blocks_of(tensors);
  std::vector<double> sums(blocks.size());
  at::parallel_for(0, blocks.size(), 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++) {
      const float* x = tensors[blocks[i].tensor].const_data_ptr<float>() + blocks[i].start;
      sums[i] = inner(x, x, blocks[i].stop - blocks[i].start);
    }
  });
  std::vector<double> totals(tensors.size());
  for (size_t i = 0; i < blocks.size(); i++) totals[blocks[i].tensor] += sums[i];
  Tensor out = at::empty({int64_t(tensors.size())}, at::kFloat);
  for (size_t k = 0; k < totals.size(); k++) out.mutable_data_ptr<float>()[k] = std::sqrt(totals[k]);
  return out;
}

namespace {

// Rounds as torch's operators do one after the other, each multiplication with a scalar and addition being one. One of
// the rates is 1, which rounds nothing.
void step(float* w, const float* g, float* b, int64_t n, float inner_rate, float outer_rate, float momentum,
          float weight_decay, bool nesterov) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const float change = __builtin_fmaf(w[i], weight_decay, g[i]) * inner_rate;
    b[i] = b[i] * momentum + change;
    w[i] -= (nesterov ? __builtin_fmaf(b[i], momentum, change) : b[i]) * outer_rate;
  }
}

}  // namespace

// b <- momentum * b + rate * (g + weight_decay * w), w <- w - (rate * (...) + momentum * b), or w - b without Nesterov,
// for tensors that lie in memory alike, each with a rate of its own. With the rate outside the buffer, b takes in
// g + weight_decay * w, and w loses rate times what it would lose.
void update(at::TensorList parameters, at::TensorList gradients, at::TensorList buffers, const Tensor& rates,
            double momentum, double weight_decay, bool nesterov, bool rate_in_buffer) {
  const std::vector<Block> blocks = blocks_of(parameters);
  const Tensor rate = rates.contiguous();
  const float* rate_ = rate.const_data_ptr<float>();
  at::parallel_for(0, blocks.size(), 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++) {
      const auto [k, start, stop] = blocks[i];
      step(parameters[k].mutable_data_ptr<float>() + start, gradients[k].const_data_ptr<float>() + start,
           buffers[k].mutable_data_ptr<float>() + start, stop - start, rate_in_buffer ? rate_[k] : 1.0f,
           rate_in_buffer ? 1.0f : rate_[k], momentum, weight_decay, nesterov);
    }
  });
}

}  // namespace clars
