// What a step is computed from, as `mint_engine.kernels.structs` fills it in.
#pragma once
#include "arrival.h"
#include "attend.h"
#include "experts.h"
#include "lora.h"
#include "peers.h"
#include "product.h"
#include "rows.h"

// How DeepSeek-V3 routes (arXiv 2412.19437, 2.1.2), in float32: an expert's chance is a sigmoid by itself. By chances
// and `bias` the best groups are found, and in these the best experts, whose weights are chances times `factor`.
struct Grouped {
  Linear<float> router;
  const float* bias;       // [E]
  int64_t groups, chosen;  // of experts that lie side by side; how many are looked into
  float factor;
};

// What some layers have in place of one network: a router and the networks of which it gives each row `each`. Of
// several ranks, each holds some of them, `first` and those that follow it.
template <typename T>
struct Experts {
  Linear<T> router;        // of experts whose chances add up to one
  const Grouped* grouped;  // null: that one
  int64_t count, each, first, held;
  int64_t whole, rounded;  // whether a row's weights add up to one; whether they are rounded as what they weigh
  Stack<T> gate_up, down;
};

template <typename T>
struct Layer {
  const T* attention_norm;
  Linear<T> qkv, output;
  const T* mlp_norm;
  Linear<T> gate_up, down;    // all rows'; beside experts there may be none
  const Experts<T>* experts;  // null: none
  Heads<T> heads;
  T* pool;  // this layer's pages
};

template <typename T>
struct Base {
  const T* embedding;  // [vocabulary, hidden]
  const Layer<T>* layers;
  int64_t layer_count;
  const T* norm;
  Linear<T> head;
  float scale, epsilon;
};

template <typename T>
struct Step {
  int64_t rows;
  const int64_t *tokens, *positions, *places;  // [rows]
  const Stretch* stretches;
  int64_t stretch_count;
  const int32_t* tables;
  const Item* items;
  int64_t item_count;
  const int64_t* keep;  // [kept]: rows whose logits are wanted
  int64_t kept;
  T* logits;            // [kept, logits_width]: this rank's columns, of all of the vocabulary
  int64_t logits_width;
  int32_t* routes;  // [layers with experts, rows, each]: where rows go
  float* weights;   // [rows, each]
  const Arrival* arrival;  // null: all that the step reads of its slots is there
};

// Room for a step's rows: hidden, x and delta [rows, hidden], the others as wide as said; sums as wide as `wide`. And
// for their pairs with experts: paired [pairs, hidden], paired_wide [pairs, 2 inner], paired_narrow [pairs, inner].
template <typename T>
struct Room {
  T *hidden, *x, *delta, *wide, *narrow;
  float* sums;        // what adapters add, until the base's part is there; a router's rows and their logits
  Middle<T>* middle;  // see lora.h
  T *paired, *paired_wide, *paired_narrow;
  int64_t wide_width, narrow_width, middle_width;
};
