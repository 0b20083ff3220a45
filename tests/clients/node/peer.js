'use strict';

// A chat client for tests in other languages: every line on standard input is a JSON string that is
// sent as a text, and every message that is heard is a line of JSON on standard output.

const readline = require('node:readline');
const WebSocket = require('ws');

const socket = new WebSocket(process.argv[2]);
const say = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);

socket.on('open', () => {
  say({ opened: true });
  const lines = readline.createInterface({ input: process.stdin });
  lines.on('line', (line) => socket.send(JSON.parse(line)));
  lines.on('close', () => socket.close(1000));
});
socket.on('message', (data, isBinary) => {
  say(isBinary ? { binary: data.toString('base64') } : { text: data.toString() });
});
socket.on('close', (code) => process.exit(code === 1000 ? 0 : 1));

// A test that fails may leave us alone, and nobody reads what we would say then.
AbortSignal.timeout(30_000).addEventListener('abort', () => process.exit(2));
process.stdout.on('error', () => process.exit(2));
