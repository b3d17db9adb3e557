// Arrays that begin at a cache line: elsewhere a load of a full line touches two lines and takes twice as long. General
// allocators align to only 16 bytes.
#pragma once
#include <cstddef>
#include <new>
#include <vector>

constexpr int LINE = 64;  // bytes of a cache line

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
