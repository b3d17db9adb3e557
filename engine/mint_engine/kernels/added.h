// What policies' adapters add to a product of training, run by run.
#pragma once
#include "lora.h"

// A run's rows are one policy's, neighbours, and meet one weight. x A^T scaling goes to the middles, and by B to
// `width` of the outputs. a [rank, in], b [rank, width], and their gradients.
template <typename T>
struct Added {
  int64_t first, rows;     // of the run
  int64_t column, width;   // of the outputs
  int64_t rank, middle;    // where its middles [rows, even(rank)] begin among all
  const T *a, *b;
  float *a_gradient, *b_gradient;
  double scaling;
  int64_t pitch() const { return even(rank); }
};
