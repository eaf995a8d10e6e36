// For the build of ffcv: OpenCV's own header of this name includes every module that OpenCV was built with.
#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>
