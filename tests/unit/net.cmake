# sdk/net, plugins/virtio-net, and the network driver of hostif/guest.
virtbay_add_test(net_header_test
  SOURCES net_header_test.cc
  LIBRARIES virtbay_sdk_net)

# A network device whose other end is a socket of the test's.
foreach(variant test_net_relay test_net_relay_parallel)
  virtbay_add_plugin(${variant} SOURCES net_relay.cc LIBRARIES virtbay_flags virtbay::sdk_net)
endforeach()
target_compile_definitions(test_net_relay PRIVATE VIRTBAY_RELAY_FLAGS=0)
target_compile_definitions(test_net_relay_parallel PRIVATE
  VIRTBAY_RELAY_FLAGS=VIRTBAY_DEVICE_QUEUE_PARALLEL)
virtbay_add_test(net_device_test
  SOURCES net_device_test.cc net_device_control_test.cc net_device_capture_test.cc
    net_device_state_test.cc
  LIBRARIES virtbay_guest)
target_compile_definitions(net_device_test PRIVATE
  VIRTBAY_OP_PLUGIN="$<TARGET_FILE:test_op>"
  VIRTBAY_OP_PARALLEL_PLUGIN="$<TARGET_FILE:test_op_parallel>"
  VIRTBAY_NET_RELAY="$<TARGET_FILE:test_net_relay>"
  VIRTBAY_NET_RELAY_PARALLEL="$<TARGET_FILE:test_net_relay_parallel>")
add_dependencies(net_device_test test_op test_op_parallel test_net_relay test_net_relay_parallel)

virtbay_add_test(virtio_net_test
  SOURCES virtio_net_test.cc
  LIBRARIES virtbay_guest virtio_net_core)
target_compile_definitions(virtio_net_test PRIVATE
  VIRTBAY_OP_PLUGIN="$<TARGET_FILE:test_op>"
  VIRTBAY_OP_PARALLEL_PLUGIN="$<TARGET_FILE:test_op_parallel>"
  VIRTBAY_VIRTIO_NET="$<TARGET_FILE:virtio-net>")
add_dependencies(virtio_net_test test_op test_op_parallel virtio-net)
