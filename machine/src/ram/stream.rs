use std::arch::x86_64::{
    __m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128, _mm_setzero_si128, _mm_sfence,
    _mm_stream_si128,
};

use retrovisor_guest::{LINE_SIZE, Page};

/// Bytes that are stored at a time.
const STEP: usize = size_of::<__m128i>();
const STEPS: usize = LINE_SIZE / STEP;

/// Non-temporal stores work on whole lines only.
pub(super) fn can_go_to(into: &Page) -> bool {
    into.as_ptr().addr().is_multiple_of(LINE_SIZE)
}

/// Copies a page with non-temporal stores, which do not bring `into` into the caches. This takes two thirds of the time
/// of a normal copy when neither page is cached, and does not evict the guest's data. Returns whether all of it is
/// zero.
///
/// # Safety
/// From `from` on, a page must be readable; it may change meanwhile. `into` must be aligned to lines ([`can_go_to`]).
pub(super) unsafe fn copy(from: *const u8, into: &mut Page) -> bool {
    let into = into.as_mut_ptr();
    // SAFETY: SSE2 is part of x86-64; reads stay within the page at `from`, stores within `into`, at multiples of 16
    // from an aligned start. The fence orders the stores before all that follows, as usual stores are.
    unsafe {
        let mut any = _mm_setzero_si128();
        for line in (0..size_of::<Page>()).step_by(LINE_SIZE) {
            let mut parts = [any; STEPS];
            for (number, part) in parts.iter_mut().enumerate() {
                *part = _mm_loadu_si128(from.add(line + number * STEP).cast());
                any = _mm_or_si128(any, *part);
            }
            for (number, part) in parts.iter().enumerate() {
                _mm_stream_si128(into.add(line + number * STEP).cast(), *part);
            }
        }
        _mm_sfence();
        _mm_movemask_epi8(_mm_cmpeq_epi8(any, _mm_setzero_si128())) == 0xffff
    }
}
