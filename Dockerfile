# Builds larder into an image with nothing else in it.
#
#   docker build -t larder .
#   docker run -p 127.0.0.1:5000:5000 -v larder:/var/cache/larder larder
#
# Without Docker Hub: --build-arg BUILDER_IMAGE=registry.example/golang:1.26
# Any image with Go, a shell and CA certificates will do.
# podman: --format docker, or the image is without its HEALTHCHECK, which OCI's format
# does not have.
ARG BUILDER_IMAGE=golang:1.26

FROM ${BUILDER_IMAGE} AS builder
# Set by builders for other platforms; empty means this one.
ARG TARGETOS
ARG TARGETARCH
# For builds without proxy.golang.org.
ARG GOPROXY
WORKDIR /src
COPY . .
# Modules and what was built of them stay from build to build; those that only tests
# need are not downloaded.
RUN --mount=type=cache,target=/cache \
    GOMODCACHE=/cache/modules GOCACHE=/cache/build CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH} \
    go build -trimpath -ldflags "-s -w" -o /out/larder .
# Scratch has no shell to make directories with. /tmp is for "larder demo".
RUN mkdir -p -m 0700 /out/cache/larder && mkdir -p /out/root/tmp && chmod 1777 /out/root/tmp

FROM scratch
LABEL org.opencontainers.image.title="larder" \
      org.opencontainers.image.description="A pull-through cache of container images" \
      org.opencontainers.image.licenses="MIT"
COPY --from=builder /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=builder /out/root/ /
# A new volume takes over this directory's owner and mode.
COPY --from=builder --chown=65532:65532 /out/cache/ /var/cache/
COPY --from=builder /out/larder /larder

# By number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 65532:65532
ENV LARDER_CACHE_DIR=/var/cache/larder
# All interfaces of the container, or "-p" would have nothing to reach; what is
# reachable from outside is up to "-p". The admin listener stays on 127.0.0.1.
ENV LARDER_ADDR=:5000
EXPOSE 5000
VOLUME /var/cache/larder
HEALTHCHECK --interval=15s --timeout=3s --start-period=5s CMD ["/larder", "health"]
ENTRYPOINT ["/larder"]
