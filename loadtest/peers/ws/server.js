'use strict';

// Echo and channels with npm's ws, for comparisons: as its README does it.
//
//   node server.js PORT_FILE [PING_SECONDS [off|shared|dedicated]]
//
// 0 seconds: no pings. The last word says what becomes of an offered permessage-deflate.

const fs = require('node:fs');
const { WebSocket, WebSocketServer } = require('ws');

const [portFile, pingWord = '0', compression = 'off'] = process.argv.slice(2);
const pingSeconds = Number(pingWord);

// What may wait for one client, as with the gateway; then it is disconnected.
const MAX_QUEUED_BYTES = 1024 * 1024;

/** The members of each channel, in the order in which they came. */
const channels = new Map();

const server = new WebSocketServer({
  host: '127.0.0.1',
  port: 0,
  backlog: 65535,
  // Messages below the gateway's threshold go plain here too.
  perMessageDeflate: compression !== 'off' && {
    serverNoContextTakeover: compression === 'shared',
    threshold: 256,
  },
  maxPayload: 16 * 1024 * 1024,
});

server.on('connection', (socket, request) => {
  // Without a listener an error of one connection would end the server.
  socket.on('error', () => {});
  if (pingSeconds > 0) {
    socket.isAlive = true;
    socket.on('pong', markAlive);
  }
  if (request.url === '/echo') {
    socket.on('message', echo);
  } else if (request.url.startsWith('/channels/')) {
    join(socket, request.url);
  } else {
    socket.close(1008);
  }
});

function markAlive() {
  this.isAlive = true;
}

function echo(data, isBinary) {
  this.send(data, { binary: isBinary });
}

function join(socket, name) {
  let members = channels.get(name);
  if (members === undefined) {
    members = new Set();
    channels.set(name, members);
  }
  members.add(socket);
  socket.on('message', (data, isBinary) => {
    // One object for all: each send reads it only.
    const options = { binary: isBinary };
    for (const member of members) {
      if (member.readyState !== WebSocket.OPEN) continue;
      if (member.bufferedAmount > MAX_QUEUED_BYTES) member.terminate();
      else member.send(data, options);
    }
  });
  socket.on('close', () => {
    members.delete(socket);
    if (members.size === 0) channels.delete(name);
  });
}

if (pingSeconds > 0) {
  setInterval(() => {
    for (const socket of server.clients) {
      if (!socket.isAlive) {
        socket.terminate();
        continue;
      }
      socket.isAlive = false;
      socket.ping();
    }
  }, pingSeconds * 1000);
}

server.on('listening', () => {
  // Whole or not at all: the reader waits for the file.
  fs.writeFileSync(`${portFile}.partial`, `listen=127.0.0.1:${server.address().port}\n`);
  fs.renameSync(`${portFile}.partial`, portFile);
});
