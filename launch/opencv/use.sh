# To be sourced at the root of the checkout before ffcv is built: it then needs two libraries of OpenCV instead of all.
# Where Debian's headers are missing, pkg-config may know another OpenCV.
if [ -f /usr/include/opencv4/opencv2/imgproc.hpp ]; then
    export PKG_CONFIG_PATH="$PWD/launch/opencv${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
    export CPLUS_INCLUDE_PATH="$PWD/launch/opencv:/usr/include/opencv4${CPLUS_INCLUDE_PATH:+:$CPLUS_INCLUDE_PATH}"
fi
