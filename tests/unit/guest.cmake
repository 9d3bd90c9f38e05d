# hostif/guest: memory and driver queue; the vhost-user front-end; the FUSE client.
virtbay_add_test(guest_test SOURCES guest_test.cc LIBRARIES virtbay_guest)
virtbay_add_test(guest_vhost_user_test SOURCES guest_vhost_user_test.cc LIBRARIES virtbay_guest)
virtbay_add_test(guest_fuse_test SOURCES guest_fuse_test.cc LIBRARIES virtbay_guest)
virtbay_add_test(guest_in_process_test SOURCES guest_in_process_test.cc LIBRARIES virtbay_guest)
target_compile_definitions(guest_in_process_test PRIVATE VIRTBAY_RNG_PLUGIN="$<TARGET_FILE:rng>")
add_dependencies(guest_in_process_test rng)
virtbay_add_test(guest_peers_test SOURCES guest_peers_test.cc LIBRARIES virtbay_guest)
