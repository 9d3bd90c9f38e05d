virtbay_add_test(wsl_test
  SOURCES wsl_ini_test.cc wsl_net_adapter_test.cc wsl_option_string_test.cc wsl_share_test.cc
          wslconfig_test.cc
  LIBRARIES virtbay_wsl)
virtbay_add_test(guest_tool_test
  SOURCES guest_tool_pools_test.cc guest_tool_send_test.cc
  LIBRARIES virtbay_guest_tool_parts)
virtbay_add_test(guest_channel_test
  SOURCES guest_channel_test.cc guest_report_test.cc wsl_service_test.cc
  LIBRARIES virtbay_device_host_parts)
