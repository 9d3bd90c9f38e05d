virtbay_add_test(device_host_test
  SOURCES device_host_config_test.cc device_host_control_test.cc device_host_prometheus_test.cc
          device_host_state_test.cc
  LIBRARIES virtbay_device_host_parts)
virtbay_add_test(device_host_service_test
  SOURCES device_host_service_test.cc
  LIBRARIES virtbay_device_host_parts virtbay_guest virtbay_bad_plugin_dir)
target_compile_definitions(device_host_service_test PRIVATE
  VIRTBAY_RELOAD_1_PLUGIN="$<TARGET_FILE:test_reload_1>")
add_dependencies(device_host_service_test test_reload_1)
virtbay_add_test(swiotlb_test SOURCES guest_pool_test.cc swiotlb_test.cc LIBRARIES virtbay_swiotlb)
virtbay_add_test(descriptors_process_test
  SOURCES descriptors_process_test.cc
  LIBRARIES virtbay_guest)
target_compile_definitions(descriptors_process_test
  PRIVATE VIRTBAY_EXECUTABLE="$<TARGET_FILE:virtbay_device_host>")
add_dependencies(descriptors_process_test virtbay_device_host virtiofs)
virtbay_add_test(record_test
  SOURCES record_test.cc
  LIBRARIES virtbay_device_host_parts virtbay_guest)
target_compile_definitions(record_test PRIVATE
  VIRTBAY_OP_PLUGIN="$<TARGET_FILE:test_op>"
  VIRTBAY_OP_PARALLEL_PLUGIN="$<TARGET_FILE:test_op_parallel>"
  VIRTBAY_CONSOLE_PLUGIN="$<TARGET_FILE:example_console>")
add_dependencies(record_test test_op test_op_parallel example_console)
virtbay_add_test(restart_test SOURCES restart_test.cc restart_points_test.cc LIBRARIES virtbay_guest)
target_compile_definitions(restart_test PRIVATE
  VIRTBAY_EXECUTABLE="$<TARGET_FILE:virtbay_device_host>"
  VIRTBAY_KILL_AT_LIBRARY="$<TARGET_FILE:virtbay_kill_at>")
add_dependencies(restart_test virtbay_device_host virtbay_kill_at virtiofs)
virtbay_add_test(handover_test
  SOURCES handover_test.cc handover_peers_test.cc
  LIBRARIES virtbay_device_host_parts virtbay_guest)
target_compile_definitions(handover_test PRIVATE
  VIRTBAY_EXECUTABLE="$<TARGET_FILE:virtbay_device_host>")
add_dependencies(handover_test virtbay_device_host virtiofs)
