# eddy alone on an empty image: a static binary, CA certificates, time zones.
#
#   docker build --build-arg VERSION=$(git describe --tags --always) -t eddy .
#
# Run it as the user that runs the node (docker run --user, compose `user:`): hard
# links need the owner of the files. 65532 is for list, show and restore.

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
ENV CGO_ENABLED=0
RUN go build -trimpath -buildvcs=false -tags pebbledb \
        -ldflags "-s -w -buildid= -X main.version=${VERSION}" -o /image/usr/local/bin/eddy ./cmd/eddy && \
    mkdir -p /image/etc/ssl/certs /image/usr/share/zoneinfo /image/tmp && \
    chmod 1777 /image/tmp && \
    cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ && \
    cp "$(go env GOROOT)/lib/time/zoneinfo.zip" /image/usr/share/zoneinfo/zoneinfo.zip

FROM scratch
COPY --from=build /image/ /
ENV ZONEINFO=/usr/share/zoneinfo/zoneinfo.zip
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/eddy"]
CMD ["help"]
