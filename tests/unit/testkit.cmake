# sdk/testkit and the conformance suite.
virtbay_add_test(plugin_check_test
  SOURCES plugin_check_test.cc
  LIBRARIES virtbay_testkit virtbay_bad_plugin_dir)
target_compile_definitions(plugin_check_test PRIVATE
  VIRTBAY_RNG_PLUGIN="$<TARGET_FILE:rng>"
  VIRTBAY_CONSOLE_PLUGIN="$<TARGET_FILE:example_console>"
  VIRTBAY_BLK_PLUGIN="$<TARGET_FILE:example_blk>"
  VIRTBAY_9P_PLUGIN="$<TARGET_FILE:example_9p>"
  VIRTBAY_VIRTIOFS_PLUGIN="$<TARGET_FILE:virtiofs>"
  VIRTBAY_NET_PLUGIN="$<TARGET_FILE:virtio-net>")
add_dependencies(plugin_check_test rng example_console example_blk example_9p virtiofs virtio-net)
virtbay_add_test(fuse_numbers_test SOURCES fuse_numbers_test.cc LIBRARIES virtbay_testkit)
# The sources of the disk are in the test itself.
virtbay_add_test(fake_host_test
  SOURCES fake_host_test.cc ${PROJECT_SOURCE_DIR}/sdk/examples/blk/blk.cc)
target_include_directories(fake_host_test PRIVATE ${PROJECT_SOURCE_DIR}/sdk/testkit/include)
target_link_libraries(fake_host_test PRIVATE virtbay::sdk)
