# The imported target HyenaRec::torch: torch's headers and libraries, without find_package(Torch), which is
# fatal for a CUDA build of torch on a machine without the CUDA toolkit. Also installed, for HyenaRecConfig.cmake.

# hyenarec_find_torch(<result>): the folder of torch (with include/ and lib/): HYENAREC_LIBTORCH, a libtorch or
# the folder of the Python package, if set; else the torch of the Python interpreter that CMake finds.
function(hyenarec_find_torch result)
  if(NOT HYENAREC_LIBTORCH)
    find_package(Python COMPONENTS Interpreter QUIET)
    if(Python_Interpreter_FOUND)
      execute_process(
        COMMAND "${Python_EXECUTABLE}" -c
                "from importlib.util import find_spec; s = find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
        OUTPUT_VARIABLE HYENAREC_LIBTORCH
        OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    endif()
  endif()
  if(NOT EXISTS "${HYENAREC_LIBTORCH}/include/torch/library.h")
    message(
      FATAL_ERROR
        "HyenaRec needs torch 2.11 to 2.14, found none (Python: '${Python_EXECUTABLE}', folder: '${HYENAREC_LIBTORCH}'): "
        "pass -DHYENAREC_LIBTORCH=<folder with torch's include/ and lib/> or -DPython_EXECUTABLE=<a Python with torch>.")
  endif()
  file(TO_CMAKE_PATH "${HYENAREC_LIBTORCH}" folder)
  set(${result} "${folder}" PARENT_SCOPE)
endfunction()

# hyenarec_torch_version(<folder> <version> <cuda>): torch's full version ("2.13.0+cpu") and the CUDA version that
# it was built with ("13.0", empty for a CPU build), from version.py (Python package) or build-version (libtorch).
function(hyenarec_torch_version folder version_result cuda_result)
  set(version "")
  set(cuda "")
  if(EXISTS "${folder}/version.py")
    file(READ "${folder}/version.py" text)
    if(text MATCHES "__version__ *= *'([^']+)'")
      set(version "${CMAKE_MATCH_1}")
    endif()
    if(text MATCHES "\ncuda[^=\n]*= *'([0-9.]+)'")
      set(cuda "${CMAKE_MATCH_1}")
    endif()
  elseif(EXISTS "${folder}/build-version")
    file(STRINGS "${folder}/build-version" version LIMIT_COUNT 1)
    if(version MATCHES "\\+cu([0-9]+)([0-9])$")
      set(cuda "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}")
    endif()
  endif()
  if(NOT version MATCHES "^[0-9]+\\.[0-9]+")
    message(FATAL_ERROR "HyenaRec found no version of torch in ${folder} (neither version.py nor build-version).")
  endif()
  set(${version_result} "${version}" PARENT_SCOPE)
  set(${cuda_result} "${cuda}" PARENT_SCOPE)
endfunction()

# hyenarec_add_torch(<folder>): makes HyenaRec::torch.
function(hyenarec_add_torch folder)
  if(TARGET HyenaRec::torch)
    return()
  endif()
  set(libraries "")
  foreach(name IN ITEMS c10 torch_cpu torch c10_cuda torch_cuda)
    set(library "${folder}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}${name}${CMAKE_SHARED_LIBRARY_SUFFIX}")
    if(EXISTS "${library}")
      list(APPEND libraries "${library}")
    elseif(NOT name MATCHES "cuda")
      message(FATAL_ERROR "HyenaRec needs ${library}, which does not exist.")
    endif()
  endforeach()
  add_library(HyenaRec::torch INTERFACE IMPORTED GLOBAL)
  set_target_properties(
    HyenaRec::torch
    PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${folder}/include;${folder}/include/torch/csrc/api/include"
               INTERFACE_LINK_LIBRARIES "${libraries}"
               # Every torch that HyenaRec supports is built with the C++11 ABI; a compiler may default to the old one.
               INTERFACE_COMPILE_DEFINITIONS "_GLIBCXX_USE_CXX11_ABI=1"
               INTERFACE_COMPILE_FEATURES "cxx_std_20")
endfunction()
