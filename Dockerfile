# The image of cluster.yaml and deploy/kuberay/rayjob.yaml: Ray, the pinned stack and this project, so that a fresh node pulls
# one image and installs nothing. It needs BuildKit, the default since Docker 23:
#   docker build -t registry.example.com/passersby:0.1.0 . && docker push registry.example.com/passersby:0.1.0
# The tests lint this file and compare its versions with constraints.txt; they have no Docker to build it with.

# The plain image and not a -cu one: PyTorch's wheels bring their own CUDA libraries, a second set would cost 3 GB.
# The tag is Ray's version in constraints.txt, and the Python that those versions were tested with.
FROM rayproject/ray:2.60.0-py311

# What NVIDIA's own base images set; a container of this one sees no GPU without.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_USAGE_STATS_ENABLED=0

# As the base image's user, into its Python: `ray up` and KubeRay start Ray in login shells, where a virtual environment
# would not be the first on the PATH. The folder is made by that user, as WORKDIR would make it root's.
USER 1000
RUN mkdir /home/ray/passersby
WORKDIR /home/ray/passersby

# Dependencies first: this layer of several GB stays the same when only code changes. boto3 is for the autoscaler on the
# head of `ray up`; the base image's older one does not go with the pinned urllib3.
COPY --chown=1000:100 pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/requirements.txt \
    && python -m pip install --no-cache-dir -c constraints.txt -r /tmp/requirements.txt boto3 \
    && rm /tmp/requirements.txt

# A plain install beside the sources: jobs are started from /home/ray/passersby/jobs, workers import the same modules
# wherever they run, and `ray job submit --working-dir .` still comes before both.
COPY --chown=1000:100 . ./
RUN python -m pip install --no-cache-dir --no-deps . \
    && rm -rf build passersby.egg-info \
    && python -c "import cv2, ray.data, torch, torchvision; import jobs.generate, actors.pedestrian_detector"

# The detector's weights are not in here: their licence is not stated, so we do not hand them on. The driver fetches
# them (24 MB) and gives them to the workers; where no registry can be reached, mount them and give --yolo-weights.
