# onnxprune with CPU onnxruntime; files are read and written in /data.
FROM python:3.12-slim
ARG EXTRAS=cpu
COPY . /src
RUN pip install --no-cache-dir "/src[${EXTRAS}]" && rm -rf /src
WORKDIR /data
ENTRYPOINT ["onnxprune"]
CMD ["--help"]
