# The search page and the HTTP interface, with the model inside; no torch, nothing is fetched at run time.
#   docker build -t lookalike .
ARG PYTHON=3.12-slim

FROM python:${PYTHON} AS build
RUN python -m venv --without-pip /opt/lookalike
COPY requirements.txt /tmp/
# Wheels alone, and only those whose hashes are in the file.
RUN python -m pip --python /opt/lookalike/bin/python install --no-cache-dir --only-binary :all: --require-hashes \
    -r /tmp/requirements.txt
# The package is copied rather than built: a build would fetch a tool that has no hash here.
COPY src/lookalike /tmp/lookalike
RUN site=$(/opt/lookalike/bin/python -c "import site; print(site.getsitepackages()[0])") \
    && cp -r /tmp/lookalike "$site/" \
    && printf '#!/opt/lookalike/bin/python\nfrom lookalike.cli import main\n\nmain()\n' > /opt/lookalike/bin/lookalike \
    && chmod 755 /opt/lookalike/bin/lookalike \
    && /opt/lookalike/bin/python -m compileall -q "$site" \
    && /opt/lookalike/bin/lookalike doctor

FROM python:${PYTHON}
RUN useradd --system --uid 10001 --no-create-home lookalike && install -d -o 10001 -g 10001 /data
COPY --from=build /opt/lookalike /opt/lookalike
COPY LICENSE /opt/lookalike/
ENV PATH=/opt/lookalike/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    LOOKALIKE_CATALOG=/data/shop.catalog
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["lookalike"]
# Any address but loopback wants a key: LOOKALIKE_API_KEY.
CMD ["serve", "--host", "0.0.0.0"]
