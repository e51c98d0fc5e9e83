// Stacks that take turns on one processor. On x86-64 a switch stores six registers; elsewhere (or with
// TRIMARAN_UCONTEXT defined) it is ucontext's, which also saves the signal mask by a system call.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if !defined(__x86_64__) && !defined(TRIMARAN_UCONTEXT)
#define TRIMARAN_UCONTEXT
#endif
#if defined(TRIMARAN_UCONTEXT)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace trimaran::emulation {

#if !defined(TRIMARAN_UCONTEXT)
// Push what the System V ABI lets a callee keep, swap stacks, pop the other side's.
__attribute__((naked, noinline)) inline void swap_stacks(void** /*store*/, void* /*resume*/) {
  asm("pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
      "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
      "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}
#endif

class Fiber {
 public:
  Fiber() = default;  // the stack of whoever switches away from it first

  // A stack on which `entry`, which must not return, starts at the first switch. Below it lies a page that no one may
  // touch, so that an overflow stops the program.
  explicit Fiber(void (*entry)()) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* pages = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    stack_ = static_cast<char*>(pages);
    mprotect(stack_, page, PROT_NONE);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, kStack);  // of a fiber that was dropped here in the middle of its work
#endif
#if defined(TRIMARAN_UCONTEXT)
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_ + page;
    context_.uc_stack.ss_size = kStack - page;
    makecontext(&context_, entry, 0);
#else
    void** top = reinterpret_cast<void**>(stack_ + kStack);
    top[-1] = nullptr;  // entry's return address; the stack is aligned as after a call
    top[-2] = reinterpret_cast<void*>(entry);
    top_ = top - 8;  // six zeros for the registers
#endif
  }

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
    if (stack_ != nullptr) munmap(stack_, kStack);
  }

  // Called on this fiber: go on where `other` stopped, and return once somebody switches back.
  void switch_to(Fiber& other) {
#if defined(TRIMARAN_UCONTEXT)
    swapcontext(&context_, &other.context_);
#else
    swap_stacks(&top_, other.top_);
#endif
  }

 private:
  static constexpr size_t kStack = 256 * 1024;  // only what is touched costs memory

  char* stack_ = nullptr;
#if defined(TRIMARAN_UCONTEXT)
  ucontext_t context_;
#else
  void* top_ = nullptr;
#endif
};

}  // namespace trimaran::emulation
