'use strict';

// A gateway that runs, and clients of npm's ws that talk to it.
//
// - startGateway: `wsgate serve` on free ports of the loopback address.
// - startProxy: what serves a gateway below a path of its own.
// - makeToken: what `wsgate token make` makes.
// - Gateway: its addresses, its clients and its end.
// - Client: a ws whose messages are read one after the other.

const assert = require('node:assert/strict');
const { execFileSync, spawn } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const { pipeline } = require('node:stream');
const { setInterval: ticks } = require('node:timers/promises');
const WebSocket = require('ws');

const ROOT = path.resolve(__dirname, '../../..');
const BINARY = process.env.GATEWAY_BINARY || path.join(ROOT, 'target/release/wsgate');

// Only a test that fails ever waits this long.
const DEADLINE_MS = 15_000;

/** Asks `condition` again and again until it holds. */
async function until(condition, what) {
  const deadline = Date.now() + DEADLINE_MS;
  for await (const _ of ticks(10)) {
    if (await condition()) return;
    assert.ok(Date.now() < deadline, `not within ${DEADLINE_MS} ms: ${what}`);
  }
}

/**
 * `flags` are added to those that every gateway here is started with, or replace them. To be stopped by
 * its user.
 */
async function startGateway(...flags) {
  const directory = fs.mkdtempSync(path.join(process.env.TEST_DIRECTORY || os.tmpdir(), 'node-'));
  const portFile = path.join(directory, 'ports');
  const log = fs.openSync(path.join(directory, 'gateway.log'), 'w');
  // What the developer has set for a gateway of their own is not meant for this one.
  const environment = Object.entries(process.env).filter(([name]) => !name.startsWith('WSGATE_'));
  const defaults = [
    '--listen=127.0.0.1:0',
    '--admin-listen=127.0.0.1:0',
    `--port-file=${portFile}`,
    '--shards=2',
    '--drain-grace=0s',
    '--drain-duration=0s',
  ].filter((flag) => !flags.some((other) => other.split('=')[0] === flag.split('=')[0]));
  const child = spawn(BINARY, ['serve', ...defaults, ...flags], {
    stdio: ['ignore', log, log],
    env: Object.fromEntries(environment),
  });
  fs.closeSync(log);
  const gateway = new Gateway(child, directory);
  try {
    await until(() => {
      assert.equal(child.exitCode, null, 'the gateway ended before it listened');
      return fs.existsSync(portFile);
    }, 'the gateway listens');
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  }
  const lines = fs.readFileSync(portFile, 'utf8').trim().split('\n');
  const ports = Object.fromEntries(lines.map((line) => line.split('=')));
  gateway.address = ports.listen;
  gateway.adminAddress = ports.admin_listen;
  return gateway;
}

/** Serves `gateway` below `prefix`, such as "/live". To be stopped by its user. */
async function startProxy(gateway, prefix) {
  const [host, port] = gateway.address.split(':');
  const clients = new Set();
  const server = net.createServer((client) => {
    clients.add(client);
    const upstream = net.connect(port, host);
    // One request a connection, and all of its target in what comes first.
    client.once('data', (head) => {
      upstream.write(head.toString('latin1').replace(` ${prefix}/`, ' /'), 'latin1');
      pipeline(client, upstream, () => {});
    });
    pipeline(upstream, client, () => clients.delete(client));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    address: `127.0.0.1:${server.address().port}${prefix}`,
    stop() {
      for (const client of clients) client.destroy();
      server.close();
    },
  };
}

/** A token of `wsgate token make`, for who has `secret`. */
function makeToken(secret, ...flags) {
  const environment = { ...process.env, WSGATE_TOKEN_HMAC_SECRET: secret };
  return execFileSync(BINARY, ['token', 'make', ...flags], { env: environment, encoding: 'utf8' }).trim();
}

class Gateway {
  #child;
  #exited;
  #directory;
  #clients = [];

  constructor(child, directory) {
    this.#child = child;
    this.#exited = once(child, 'exit');
    this.#directory = directory;
  }

  /** Ends the process, and says so if it did not end as it should. */
  async stop() {
    // What a failed test left open must not keep this process from its end.
    for (const client of this.#clients) client.socket.terminate();
    this.#child.kill('SIGTERM');
    const impatience = AbortSignal.timeout(DEADLINE_MS);
    impatience.addEventListener('abort', () => this.#child.kill('SIGKILL'));
    const [status] = await this.#exited;
    const log = fs.readFileSync(path.join(this.#directory, 'gateway.log'), 'utf8');
    fs.rmSync(this.#directory, { recursive: true });
    assert.equal(status, 0, log);
    assert.doesNotMatch(log, /panicked/);
  }

  url(target) {
    return `ws://${this.address}${target}`;
  }

  /** A client of this gateway, once it is open. */
  async connect(target, options = {}) {
    const client = new Client(this.url(target), options);
    this.#clients.push(client);
    await client.opened;
    return client;
  }

  /** Calls the HTTP API. */
  async api(method, request) {
    const response = await fetch(`http://${this.adminAddress}/api/${method}`, {
      method: 'POST',
      body: JSON.stringify(request),
    });
    return response.json();
  }
}

class Client {
  #unread = [];
  #readers = [];
  #closed;

  constructor(url, options) {
    this.socket = new WebSocket(url, { perMessageDeflate: false, ...options });
    this.opened = once(this.socket, 'open', { signal: AbortSignal.timeout(DEADLINE_MS) });
    this.socket.on('upgrade', (response) => {
      this.connectionId = response.headers['x-connection-id'];
    });
    this.socket.on('message', (data, isBinary) => {
      this.#take({ message: isBinary ? data : data.toString() });
    });
    this.#closed = new Promise((resolve) => {
      this.socket.on('close', (code, reason) => {
        resolve({ code, reason: reason.toString() });
        this.#take({ end: true });
      });
    });
  }

  #take(event) {
    const reader = this.#readers.shift();
    if (reader) reader(event);
    else this.#unread.push(event);
  }

  send(data, options = {}) {
    this.socket.send(data, options);
  }

  /** The next message: a string for a text, a Buffer for a binary. */
  async read() {
    const event = this.#unread.shift() ?? (await new Promise((take) => this.#readers.push(take)));
    assert.ok(!event.end, 'the connection was closed');
    return event.message;
  }

  /** The code and the reason of the close. */
  async closed() {
    return this.#closed;
  }

  /** Closes, and answers what the gateway closed with. */
  async close(code = 1000, reason = '') {
    this.socket.close(code, reason);
    return this.closed();
  }
}

/** The HTTP answer to an opening handshake that is refused. */
async function refusal(url, options = {}) {
  const socket = new WebSocket(url, options);
  // Ending the request below is an error to ws, and no news to us.
  socket.on('error', () => {});
  const signal = AbortSignal.timeout(DEADLINE_MS);
  const [request, response] = await once(socket, 'unexpected-response', { signal });
  const chunks = [];
  for await (const chunk of response) chunks.push(chunk);
  request.destroy();
  return {
    status: response.statusCode,
    headers: response.headers,
    body: Buffer.concat(chunks).toString(),
  };
}

module.exports = { DEADLINE_MS, makeToken, refusal, startGateway, startProxy, until };
