// kSanitized: whether this is a build with a sanitizer, which handles faults itself, and names
// functions of images after they were unloaded.
// A constant; [any].
#ifndef VIRTBAY_FRAMEWORK_BASE_SANITIZED_H_
#define VIRTBAY_FRAMEWORK_BASE_SANITIZED_H_

namespace virtbay {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_BASE_SANITIZED_H_
