# Agent Shell with its drivers for Iggy and Redis. The command says which services it runs; compose.yaml builds it.
FROM python:3.12-slim

RUN useradd --system --uid 10001 --create-home agentshell \
    && install --directory --mode 0700 --owner agentshell /var/lib/agentshell

WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY gen/python gen/python
COPY services services
COPY clients/python clients/python
COPY personalities personalities
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[iggy,redis]'

USER agentshell
WORKDIR /home/agentshell
ENV AGENTSHELL_DATA_DIR=/var/lib/agentshell
VOLUME /var/lib/agentshell
EXPOSE 7700 7701
STOPSIGNAL SIGTERM
ENTRYPOINT ["agentshell"]
CMD ["up"]
