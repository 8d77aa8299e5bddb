// Layers on accelerators: torch's own forward passes, and backward passes in which Python, which launches kernels and
// books norms, is asked once for each layer.
#pragma once

#include <ATen/ops/_batch_norm_impl_index.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/rsqrt.h>

#include <mutex>

#include "layers.h"

namespace clars {

// The plans that no layer needs any more, until Python, which must not be called by what destroys a graph, takes them.
class EndedPlans {
 public:
  static void add(int64_t plan) {
    const std::lock_guard lock(mutex);
    plans.push_back(plan);
  }

  static std::vector<int64_t> take() {
    const std::lock_guard lock(mutex);
    return std::exchange(plans, {});
  }

 private:
  static inline std::mutex mutex;
  static inline std::vector<int64_t> plans;
};

// What autocast does with a layer's tensors.
enum class Cast { none, lower, full };

class Accelerated {
 public:
  Accelerated(const Tensor& x, const Tensor& weight, int64_t group, int64_t plan, Cast cast)
      : group(group),
        plan(plan),
        policy(cast),
        device(x.device()),
        type(x.scalar_type()),
        weight_type(weight.scalar_type()),
        sizes(x.sizes().vec()),
        strides(x.strides().vec()),
        weight_sizes(weight.sizes().vec()),
        autocast(autocast_type()) {}

  ~Accelerated() { EndedPlans::add(plan); }

  bool takes(const Tensor& x, const Tensor& weight) const {
    return plain(x, type) && plain(weight, weight_type) && x.sizes() == sizes && x.strides() == strides &&
           weight.sizes() == weight_sizes && autocast_type() == autocast;
  }

  // Casts as autocast does where it is on, through its own cache of weights.
  Tensor cast(const Tensor& tensor) const {
    if (!autocast || policy == Cast::none || tensor.scalar_type() == at::kDouble) return tensor;
    if (policy == Cast::full) return tensor.to(at::kFloat);
    return at::autocast::cached_cast(*autocast, tensor, device.type());
  }

  // What Python has not formed: nothing, for most.
  Gradients rest(const Tensor&, const Tensor&, const Tensor&, Needs) const { return {}; }

  // The gradient of an added vector, and the squared norms of all examples' contributions, or of all groups'.
  Products added(const Tensor&) const { return {}; }

  const int64_t group;
  const int64_t plan;  // the number by which Python knows what the layer's backward pass does

 private:
  bool plain(const Tensor& tensor, at::ScalarType of) const {
    return tensor.device() == device && tensor.scalar_type() == of && tensor.layout() == at::kStrided &&
           !tensor.is_neg() && !tensor._is_zerotensor();
  }

  std::optional<at::ScalarType> autocast_type() const {
    if (!at::autocast::is_autocast_enabled(device.type())) return std::nullopt;
    return at::autocast::get_autocast_dtype(device.type());
  }

  const Cast policy;
  const at::Device device;
  const at::ScalarType type, weight_type;
  const std::vector<int64_t> sizes, strides, weight_sizes;
  const std::optional<at::ScalarType> autocast;
};

// The sums of each group's contributions [b, P], an example a group by default: their squared norms.
inline Tensor squares_of(Tensor sums, int64_t group) {
  if (group > 1) {
    const int64_t examples = sums.size(0), whole = examples / group * group;
    Tensor grouped = sums.narrow(0, 0, whole).unflatten(0, {-1, group}).sum(1);
    sums = whole == examples ? grouped : at::cat({grouped, sums.narrow(0, whole, examples - whole).sum(0, true)});
  }
  return at::linalg_vector_norm(sums, 2, 1).square();
}

inline Products added_over(const Tensor& gy, at::IntArrayRef positions, int64_t group) {
  const at::ScalarType wide = gy.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor each = positions.empty() ? gy.to(wide) : gy.sum(positions, false, wide);
  return {each.sum(0).to(gy.scalar_type()), squares_of(each, group)};
}

class AcceleratedConv : public Accelerated {
 public:
  AcceleratedConv(const Tensor& x, const Tensor& weight, int64_t group, int64_t plan, std::vector<int64_t> stride,
                  std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups)
      : Accelerated(x, weight, group, plan, Cast::lower), stride(stride), padding(padding), dilation(dilation),
        none(stride.size(), 0), groups(groups) {}

  Tensor forward(const Tensor& x, const Tensor& weight, const Maybe& bias, Tensors&) const {
    return at::convolution(x, weight, bias, stride, padding, dilation, false, none, groups);
  }

  Gradients rest(const Tensor& gy, const Tensor& x, const Tensor& weight, Needs needs) const {
    Gradients got;
    if (needs.x || needs.weight)
      std::tie(got.x, got.weight, std::ignore) =
          at::convolution_backward(gy, x, weight, at::OptionalIntArrayRef(), stride, padding, dilation, false, none,
                                   groups, {needs.x, needs.weight, false});
    return got;
  }

  Products added(const Tensor& gy) const { return added_over(gy.flatten(2), {2}, group); }

 private:
  const std::vector<int64_t> stride, padding, dilation, none;
  const int64_t groups;
};

// Of x [B, ..., D] with gy [B, ..., P].
class AcceleratedLinear : public Accelerated {
 public:
  AcceleratedLinear(const Tensor& x, const Tensor& weight, int64_t group, int64_t plan)
      : Accelerated(x, weight, group, plan, Cast::lower) {}

  Tensor forward(const Tensor& x, const Tensor& weight, const Maybe& bias, Tensors&) const {
    return at::linear(x, weight, bias);
  }

  Gradients rest(const Tensor& gy, const Tensor& x, const Tensor& weight, Needs needs) const {
    Gradients got;
    if (needs.x) got.x = at::matmul(gy, weight);
    if (needs.weight) got.weight = at::mm(gy.reshape({-1, gy.size(-1)}).t(), x.reshape({-1, x.size(-1)}));
    return got;
  }

  Products added(const Tensor& gy) const {
    std::vector<int64_t> positions;
    for (int64_t dim = 1; dim < gy.dim() - 1; dim++) positions.push_back(dim);
    return added_over(gy, positions, group);
  }
};

// Of x [B, C, ...] in any memory format, in training or evaluation mode.
class AcceleratedBatchNorm : public Accelerated {
 public:
  AcceleratedBatchNorm(const Tensor& x, const Tensor& weight, int64_t group, int64_t plan, Maybe running_mean,
                       Maybe running_var, bool training, double momentum, double eps)
      : Accelerated(x, weight, group, plan, Cast::none), running_mean(running_mean), running_var(running_var),
        training(training), momentum(momentum), eps(eps) {}

  Tensor forward(const Tensor& x, const Tensor& weight, const Maybe& bias, Tensors& saved) const {
    auto [y, mean, rstd, reserve, library] =
        at::_batch_norm_impl_index(x, weight, bias, running_mean, running_var, training, momentum, eps,
                                   at::globalContext().userEnabledCuDNN());
    if (training) {
      saved = {mean, rstd};
    } else {  // the running statistics may move on before the backward pass
      const Tensor variance = running_var->scalar_type() == at::kDouble ? *running_var : running_var->to(at::kFloat);
      saved = {running_mean->clone(), at::rsqrt(variance + eps)};
    }
    return y;
  }

 private:
  const Maybe running_mean, running_var;
  const bool training;
  const double momentum, eps;
};

// Of x [B, C, ...].
class AcceleratedGroupNorm : public Accelerated {
 public:
  AcceleratedGroupNorm(const Tensor& x, const Tensor& weight, int64_t group, int64_t plan, int64_t groups, double eps)
      : Accelerated(x, weight, group, plan, Cast::full), groups(groups), eps(eps) {}

  Tensor forward(const Tensor& x, const Tensor& weight, const Maybe& bias, Tensors& saved) const {
    const int64_t examples = x.size(0), channels = x.size(1), positions = x.numel() / (examples * channels);
    auto [y, mean, rstd] =
        at::native_group_norm(x.contiguous(), weight, bias, examples, channels, positions, groups, eps);
    saved = {mean, rstd};
    return y;
  }

 private:
  const int64_t groups;
  const double eps;
};

// Over the last dimensions of x [B, ..., *weight's].
class AcceleratedLayerNorm : public Accelerated {
 public:
  AcceleratedLayerNorm(const Tensor& x, const Tensor& weight, int64_t group, int64_t plan, double eps)
      : Accelerated(x, weight, group, plan, Cast::full), eps(eps) {}

  Tensor forward(const Tensor& x, const Tensor& weight, const Maybe& bias, Tensors& saved) const {
    auto [y, mean, rstd] = at::native_layer_norm(x, weight.sizes(), weight, bias, eps);
    saved = {mean, rstd};
    return y;
  }

 private:
  const double eps;
};

}  // namespace clars
