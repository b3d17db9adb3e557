// Numbers that begin where a cache line begins: a load of a whole line meets two lines elsewhere, and takes twice as
// long. What a general allocator gives begins at 16 bytes.
#pragma once
#include <cstddef>
#include <new>
#include <vector>

constexpr int LINE = 64;  // bytes that come together

template <typename T>
struct OnLine {
  using value_type = T;
  OnLine() = default;
  template <typename U>
  OnLine(const OnLine<U>&) {}
  T* allocate(std::size_t count) { return (T*)::operator new(count * sizeof(T), std::align_val_t(LINE)); }
  void deallocate(T* at, std::size_t) { ::operator delete(at, std::align_val_t(LINE)); }
  bool operator==(const OnLine&) const { return true; }
  bool operator!=(const OnLine&) const { return false; }
};

template <typename T>
using Aligned = std::vector<T, OnLine<T>>;
