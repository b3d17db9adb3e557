// What a step is computed from, as `mint_engine.kernels.structs` fills it in.
#pragma once
#include "attend.h"
#include "lora.h"
#include "peers.h"
#include "product.h"
#include "rows.h"

template <typename T>
struct Layer {
  const T* attention_norm;
  Linear<T> qkv, output;
  const T* mlp_norm;
  Linear<T> gate_up, down;
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
};

// Room for a step's rows: hidden, x and delta [rows, hidden], the others as wide as said; sums as wide as `wide`.
template <typename T>
struct Room {
  T *hidden, *x, *delta, *wide, *narrow;
  float* sums;        // what adapters add, until the base's part is there
  Middle<T>* middle;  // see lora.h
  int64_t wide_width, narrow_width, middle_width;
};
