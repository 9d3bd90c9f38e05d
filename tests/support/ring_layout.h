// Which ring layout a test program drives: the same sources are built once per layout. Stateless.
#ifndef VIRTBAY_TESTS_SUPPORT_RING_LAYOUT_H_
#define VIRTBAY_TESTS_SUPPORT_RING_LAYOUT_H_

namespace virtbay::testing {

#ifdef VIRTBAY_TEST_PACKED_RINGS
inline constexpr bool kPackedRings = true;
#else
inline constexpr bool kPackedRings = false;
#endif

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_RING_LAYOUT_H_
