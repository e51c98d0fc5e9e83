// Lets a CPU-only torch run autograd on fake CUDA tensors (tests/fake_cuda.py builds and loads it).
//
// Fake tensors hold no data, but the C++ around them still asks CUDA three things: the autograd engine which
// accelerator torch was built for and which device and stream each node belongs to, and attention which kernel
// to take. The answers here are those of a node of eight GPUs on which everything is already done.
//
// Must be loaded before torch is imported: the import asks for the CUDA hooks, and keeps what it gets.

#include <ATen/Context.h>
#include <ATen/SDPBackend.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace at {

// "Built for CUDA", which makes CUDA the accelerator of the autograd engine. Nothing says that a device is
// available, so torch.cuda.is_available() stays False and no kernel is ever launched.
struct FakeCudaHooks final : CUDAHooksInterface {
  explicit FakeCudaHooks(CUDAHooksArgs) {}
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
};

// At the lowest priority, so that a torch that was built for CUDA still installs its own.
C10_REGISTER_CLASS_WITH_PRIORITY(CUDAHooksRegistry, CUDAHooks, REGISTRY_FALLBACK, FakeCudaHooks)

}  // namespace at

namespace at::native {

// The choice torch makes on a recent GPU (cuDNN's kernel, which keeps the same tensors as flash, left aside).
// Without it attention would decompose into matrix products that hold the scores, and a trace would show
// operators and memory that no GPU run has.
static int64_t choose_attention(const Tensor& query, const Tensor& /*key*/, const Tensor& value,
                                const std::optional<Tensor>& mask, double /*dropout_p*/, bool /*is_causal*/,
                                std::optional<double> /*scale*/, bool grouped_heads) {
  const auto& context = globalContext();
  const auto type = query.scalar_type();
  const bool half = type == kHalf || type == kBFloat16;
  const bool even = query.sym_size(-1) == value.sym_size(-1) && query.sym_size(-1) <= 256;
  if (context.userEnabledFlashSDP() && half && even && !mask) {
    return static_cast<int64_t>(SDPBackend::flash_attention);
  }
  if (context.userEnabledMemEfficientSDP() && (half || type == kFloat) && !grouped_heads) {
    return static_cast<int64_t>(SDPBackend::efficient_attention);
  }
  return static_cast<int64_t>(SDPBackend::math);
}

REGISTER_CUDA_DISPATCH(_fused_sdp_choice_stub, &choose_attention)

}  // namespace at::native

namespace c10::impl {

static thread_local DeviceIndex current_device = 0;

// Eight devices with one stream each. Events need no state: on a device without work all of them have happened.
struct FakeCudaGuard final : DeviceGuardImplInterface {
  DeviceType type() const override { return kCUDA; }
  DeviceIndex deviceCount() const noexcept override { return 8; }
  Device getDevice() const override { return {kCUDA, current_device}; }
  void setDevice(Device device) const override { uncheckedSetDevice(device); }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.has_index()) current_device = device.index();
  }
  Device exchangeDevice(Device device) const override {
    const Device previous = getDevice();
    uncheckedSetDevice(device);
    return previous;
  }
  Stream getStream(Device device) const override {
    return Stream(Stream::DEFAULT, device.has_index() ? device : getDevice());
  }
  Stream exchangeStream(Stream stream) const override { return getStream(stream.device()); }
  void record(void**, const Stream&, DeviceIndex, EventFlag) const override {}
  void block(void*, const Stream&) const override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, FakeCudaGuard)

}  // namespace c10::impl
