# SPDX-License-Identifier: Apache-2.0
# For a ROS that comes from PyPI; runs once every target is known, before generation checks them.
# - The wheels' targets name include folders of the machine they were built on: those that do not exist here are dropped.
# - Our own targets export the numpy folder of this environment, which CMake refuses when the environment lies in the
#   source tree (.venv): such plain folders are kept for the build and not exported.

function(keep_existing_includes target)
  get_target_property(folders ${target} INTERFACE_INCLUDE_DIRECTORIES)
  if(NOT folders)
    return()
  endif()
  set(kept "")
  foreach(folder IN LISTS folders)
    if(folder MATCHES "^\\$<" OR EXISTS "${folder}")
      list(APPEND kept "${folder}")
    endif()
  endforeach()
  set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${kept}")
endfunction()

function(export_no_plain_includes target)
  get_target_property(folders ${target} INTERFACE_INCLUDE_DIRECTORIES)
  if(NOT folders)
    return()
  endif()
  list(TRANSFORM folders REPLACE "^(/.*)$" "$<BUILD_INTERFACE:\\1>")
  set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${folders}")
endfunction()

function(mend_include_directories)
  get_property(imported DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS imported)
    keep_existing_includes(${target})
  endforeach()
  get_property(built DIRECTORY PROPERTY BUILDSYSTEM_TARGETS)
  foreach(target IN LISTS built)
    export_no_plain_includes(${target})
  endforeach()
endfunction()

cmake_language(DEFER CALL mend_include_directories)
