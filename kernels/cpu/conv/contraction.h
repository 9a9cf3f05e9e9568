// dgrad and fprop: blocks of tiles, loaded, multiplied and stored. tiles.h defines the terms.
#pragma once

#include "store.h"

namespace genimg::cpu::GENIMG_ISA {

struct Unit {
  int64_t pass, block, split;
  int64_t piece;  // of the moments
};

// The split is the slowest index of a unit's number, so that a thread reuses a part of the weight.
inline Unit unit_at(const Tiling& t, int64_t number) {
  const int64_t all = t.all_blocks();
  Unit unit = {0, number % all, number / all, number % all};
  while (unit.block >= t.blocks(unit.pass)) unit.block -= t.blocks(unit.pass++);
  return unit;
}

// The terms of a product of two axes' products, against a panel of the weight.
inline int find_terms(const Tiling& t, int values_w, const Product& h, const Product& w,
                      const float* values, const float* panel, int64_t matrix, Term* terms) {
  int count = 0;
  for (int i = 0; i < h.terms; ++i) {
    for (int j = 0; j < w.terms; ++j) {
      const int64_t value = static_cast<int64_t>(h.value[i]) * values_w + w.value[j];
      const int64_t packed = h.packed[i] * t.packed_w + w.packed[j];
      terms[count++] = {values + value * t.value_size(), panel + packed * matrix};
    }
  }
  return count;
}

// Panels whose products are computed side by side, while the values that they share are cached.
constexpr int64_t kPanelsAtOnce = 1;
constexpr int64_t kPanelProducts = kMostProducts * kMostProducts * kTileCount * kPanel;

template <typename T>
struct Contraction {
  Contraction(const ConvCall& call, const Tiling& tiling, float* scratch)
      : call(call),
        t(tiling),
        values(scratch),
        products(scratch + tiling.max_values() * tiling.value_size()) {}

  static int64_t scratch_size(const Tiling& t) {
    return t.max_values() * t.value_size() + kPanelsAtOnce * kPanelProducts;
  }

  // Returns false where the input was refused.
  bool run(int64_t number) {
    const Unit unit = unit_at(t, number);
    h = &t.axis_h(unit.pass);
    w = &t.axis_w(unit.pass);
    const int64_t first = unit.block * kTileCount;
    used = smaller(kTileCount, t.tiles(unit.pass) - first);
    Guard guard;
    load_block<T>(t, *h, *w, call.prologue, first, used, values, &guard);
    if (guard.refuses()) return false;
    find_outputs(first);
    const int64_t panels = t.panels(), splits = t.splits();
    const int64_t last = panels * (unit.split + 1) / splits;
    for (int64_t panel = panels * unit.split / splits; panel < last; panel += kPanelsAtOnce) {
      run_panels(panel, smaller(panel + kPanelsAtOnce, last), unit.piece);
    }
    if (call.epilogue.counts && unit.split == 0) {
      call.epilogue.counts[unit.piece] = static_cast<double>(values_per_channel());
    }
    return true;
  }

 private:
  void find_outputs(int64_t first) {
    outputs.step_h = h->out_stride * t.out_w * t.out_c;
    outputs.step_w = w->out_stride * t.out_c;
    Cursor at(*h, *w, first);
    for (int64_t row = 0; row < used; ++row, at.advance()) {
      const int64_t y = at.at_h() * h->out_step, x = at.at_w() * w->out_step;
      outputs.at[row] = ((at.image * t.out_h + y) * t.out_w + x) * t.out_c;
    }
  }

  // Calls visit(output_phase of h, output_phase of w) with the outputs set to that output phase.
  template <typename Visit>
  void each_output_phase(Visit visit) {
    for (int i = 0; i < h->output_phases; ++i) {
      for (int j = 0; j < w->output_phases; ++j) {
        outputs.output_phase_at =
            (h->output_phase[i].out_at * t.out_w + w->output_phase[j].out_at) * t.out_c;
        visit(h->output_phase[i], w->output_phase[j]);
      }
    }
  }

  int64_t values_per_channel() const { return used * h->all_outputs() * w->all_outputs(); }

  int64_t columns_of(int64_t panel) const { return smaller(kPanel, t.out_c - panel * kPanel); }

  void run_panels(int64_t begin, int64_t end, int64_t piece) {
    double first[kPanelsAtOnce * kPanel] = {}, second[kPanelsAtOnce * kPanel] = {};
    each_output_phase([&](const OutputPhase& output_phase_h, const OutputPhase& output_phase_w) {
      multiply_output_phase(output_phase_h, output_phase_w, begin, end);
      const Inverse inverse = {t.size, output_phase_h.products, output_phase_w.products,
                               output_phase_h.outputs, output_phase_w.outputs};
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t columns = columns_of(panel), local = (panel - begin) * kPanel;
        const float* from = products + (panel - begin) * kPanelProducts;
        for (int64_t v = 0; v < columns; v += kWidth) {
          store_vector(inverse, panel * kPanel + v, static_cast<int>(smaller(kWidth, columns - v)),
                       from + v, first + local + v, second + local + v);
        }
      }
    });
    if (!call.epilogue.counts) return;
    const int64_t c = begin * kPanel, columns = smaller(end * kPanel, t.out_c) - c;
    if (call.epilogue.kind == Epilogue::plain) take_moments(c, columns, first, second);
    double* first_out = call.epilogue.first + piece * t.out_c + c;
    double* second_out = call.epilogue.second + piece * t.out_c + c;
    for (int64_t i = 0; i < columns; ++i) {
      first_out[i] = first[i];
      second_out[i] = second[i];
    }
  }

  void multiply_output_phase(const OutputPhase& output_phase_h, const OutputPhase& output_phase_w,
                             int64_t begin, int64_t end) {
    Term terms[kMaxKernel * kMaxKernel];
    for (int m_h = 0; m_h < output_phase_h.products; ++m_h) {
      for (int m_w = 0; m_w < output_phase_w.products; ++m_w) {
        const int64_t at = (m_h * output_phase_w.products + m_w) * kTileCount * kPanel;
        for (int64_t panel = begin; panel < end; ++panel) {
          const int64_t columns = columns_of(panel);
          const int64_t matrix = t.depth * (columns <= kWidth ? kWidth : kPanel);
          const float* packed = call.packed + panel * kPanel * t.packed_rows * t.depth;
          const int count = find_terms(t, w->values, output_phase_h.product[m_h],
                                       output_phase_w.product[m_w], values, packed, matrix, terms);
          multiply(terms, count, t.depth, kTileCount, used, columns,
                   products + (panel - begin) * kPanelProducts + at);
        }
      }
    }
  }

  void store_vector(const Inverse& inverse, int64_t c, int count, const float* from, double* first,
                    double* second) {
    Moments moments;
    if (call.epilogue.kind == Epilogue::plain) {
      store_as<PlainStore>(inverse, c, count, from, &moments);
    } else {
      store_as<GateStore>(inverse, c, count, from, &moments);
    }
    if (call.epilogue.counts) add_moments(moments, count, first, second);
  }

  template <template <typename, bool> typename Store>
  void store_as(const Inverse& inverse, int64_t c, int count, const float* from, Moments* moments) {
    if (count == kWidth) {
      finish_output_phase(inverse, outputs, used, from, Store<T, true>(call.epilogue, c, count),
                          moments);
    } else {
      finish_output_phase(inverse, outputs, used, from, Store<T, false>(call.epilogue, c, count),
                          moments);
    }
  }

  // Turns sums into mean and sum of squares about it: first about the float nearest to the mean,
  // whose remainder then corrects both.
  void take_moments(int64_t c, int64_t columns, double* first, double* second) {
    const double n = static_cast<double>(values_per_channel());
    for (int64_t v = 0; v < columns; v += kWidth) {
      const int count = static_cast<int>(smaller(kWidth, columns - v));
      float about[kWidth] = {};
      for (int i = 0; i < count; ++i) about[i] = static_cast<float>(first[v + i] / n);
      double rests[kWidth] = {}, squares[kWidth] = {};
      each_output_phase([&](const OutputPhase& output_phase_h, const OutputPhase& output_phase_w) {
        const Moments found = moments_about(
            load(about), outputs, used, output_phase_h.outputs, output_phase_w.outputs,
            static_cast<const T*>(call.epilogue.out) + c + v, count);
        add_moments(found, count, rests, squares);
      });
      for (int i = 0; i < count; ++i) {
        const double rest = rests[i] / n;
        first[v + i] = about[i] + rest;
        second[v + i] = squares[i] - n * rest * rest;
      }
    }
  }

  const ConvCall& call;
  const Tiling& t;
  float *values, *products;
  const Axis *h, *w;
  int64_t used;
  Outputs outputs;
};

template <typename T>
inline void contract(const ConvCall& call, ConvDirection direction, float* scratch, int64_t begin,
                     int64_t end) {
  const Tiling tiling = tiling_of(call.geometry, direction, call.form);
  Contraction<T> contraction(call, tiling, scratch);
  for (int64_t unit = begin; unit < end; ++unit) {
    if (__atomic_load_n(call.refused, __ATOMIC_RELAXED)) return;
    if (!contraction.run(unit)) __atomic_store_n(call.refused, 1, __ATOMIC_RELAXED);
  }
}

}  // namespace genimg::cpu::GENIMG_ISA
