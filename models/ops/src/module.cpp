// Importing the extension is what registers its kernels; as a Python module it is empty.

#include <Python.h>

extern "C" PyObject* PyInit_leandetr_ops(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "leandetr_ops", "Compiled kernels of models.ops.", -1};
  return PyModule_Create(&definition);
}
