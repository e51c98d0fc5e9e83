// torch's memory for CPU tensors, but such that a freed block serves the next tensor of its size.
//
// torch asks glibc for aligned blocks, and glibc (seen in 2.36) looks for the size plus the alignment before it trims
// what it found: the hole that a tensor leaves is too small for the next one like it. A training step makes the same
// sizes over and over, and its heap grew by a quarter of what it held. Here a plain block is aligned by hand.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <cstdlib>

namespace {

constexpr uintptr_t kAlignment = 64;  // as torch's own allocator

// The word before the data holds the block's own address.
void* allocate_aligned(size_t bytes) {
  void* block = std::malloc(bytes + kAlignment + sizeof(void*));
  TORCH_CHECK_WITH(OutOfMemoryError, block != nullptr, "not enough memory for a tensor of ", bytes, " bytes");
  const uintptr_t first = reinterpret_cast<uintptr_t>(block) + sizeof(void*);
  void** data = reinterpret_cast<void**>((first + kAlignment - 1) / kAlignment * kAlignment);
  data[-1] = block;
  return data;
}

void release(void* data) {
  if (data == nullptr) return;
  c10::profiledCPUMemoryReporter().Delete(data);
  std::free(static_cast<void**>(data)[-1]);
}

struct ReusingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes == 0 ? nullptr : allocate_aligned(bytes);
    if (data != nullptr) c10::profiledCPUMemoryReporter().New(data, bytes);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

ReusingAllocator allocator;
// Blocks made before are given back to where they came from: every tensor remembers how to free its own.
const bool installed = (c10::SetCPUAllocator(&allocator), true);

}  // namespace
