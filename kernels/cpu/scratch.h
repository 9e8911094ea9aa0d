// Memory of a thread that later calls find again: fresh pages cost more than a small product.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

struct Scratch {
  void* memory = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(memory); }

  template <class T>
  T* take(size_t count) {
    size_t wanted = (count * sizeof(T) + 127) / 64 * 64;
    if (wanted > size) {
      std::free(memory);
      memory = std::aligned_alloc(64, wanted);
      size = memory ? wanted : 0;
      if (!memory) throw std::bad_alloc();
    }
    return static_cast<T*>(memory);
  }
};
