// The adapters of a training product, one for each run of adjacent rows of one policy.
#pragma once
#include "lora.h"

// One adapter on one run: adjacent rows of one policy that are multiplied by one weight. x A^T scaling goes to the
// middles; their product with B is added to `width` of the outputs. a [rank, in], b [rank, width], and their gradients.
template <typename T>
struct AdapterRun {
  int64_t first, rows;    // of the run
  int64_t column, width;  // of the outputs
  int64_t rank, middle;   // where its middles [rows, even(rank)] begin among all
  const T *a, *b;
  float *a_gradient, *b_gradient;
  double scaling;
  int64_t pitch() const { return even(rank); }
};
