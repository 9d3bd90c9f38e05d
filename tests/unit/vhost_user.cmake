# hostif/vhost_user: messages, memory, sockets; and a whole device behind it.
virtbay_add_test(vhost_user_test
  SOURCES vhost_user_test.cc vhost_user_hostile_test.cc vhost_user_memory_test.cc
          vhost_user_server_test.cc vhost_user_in_flight_test.cc
  LIBRARIES virtbay_vhost_user virtbay_guest)
virtbay_add_test(vhost_user_end_to_end_test
  SOURCES vhost_user_end_to_end_test.cc
  LIBRARIES virtbay_vhost_user virtbay_guest virtbay_isolation virtbay_bad_plugin_dir)
target_compile_definitions(vhost_user_end_to_end_test
  PRIVATE VIRTBAY_RNG_PLUGIN="$<TARGET_FILE:rng>")
add_dependencies(vhost_user_end_to_end_test rng)
