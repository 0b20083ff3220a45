'use strict';

const assert = require('node:assert/strict');
const { randomBytes } = require('node:crypto');
const { once } = require('node:events');
const { after, before, describe, it } = require('node:test');
const { DEADLINE_MS, startGateway } = require('./gateway');

const LIMIT = 64 * 1024;

describe('an echo', { timeout: 4 * DEADLINE_MS }, () => {
  let gateway;
  before(async () => {
    gateway = await startGateway();
  });
  after(() => gateway.stop());

  it('is text for text and binary for binary', async () => {
    const client = await gateway.connect('/echo');
    const messages = ['grüß dich 🦀', '', 'a'.repeat(126), Buffer.from([0, 255]), Buffer.alloc(0)];
    for (const message of messages) {
      client.send(message);
      assert.deepEqual(await client.read(), message);
    }
    assert.deepEqual(await client.close(), { code: 1000, reason: '' });
  });

  it('has at most the largest size, and one byte more is 1009', async () => {
    const client = await gateway.connect('/echo');
    const largest = randomBytes(LIMIT);
    client.send(largest);
    assert.deepEqual(await client.read(), largest);
    client.send(Buffer.concat([largest, Buffer.from('x')]));
    assert.equal((await client.closed()).code, 1009);
  });

  it('of fragments is their message', async () => {
    const client = await gateway.connect('/echo');
    client.send('One ', { fin: false });
    client.send('message ', { fin: false });
    client.send('in pieces', { fin: true });
    assert.equal(await client.read(), 'One message in pieces');
    await client.close();
  });

  it('of a Ping is a Pong with its payload, also between fragments', async () => {
    const client = await gateway.connect('/echo');
    for (const payload of ['', 'are you there?', 'x'.repeat(125)]) {
      client.send('half', { fin: false });
      client.socket.ping(payload);
      const [pong] = await once(client.socket, 'pong', { signal: AbortSignal.timeout(DEADLINE_MS) });
      assert.equal(pong.toString(), payload);
      client.send(' whole', { fin: true });
      assert.equal(await client.read(), 'half whole');
    }
    await client.close();
  });

  it('of many messages at once has them all, in order', async () => {
    const client = await gateway.connect('/echo');
    const messages = Array.from({ length: 2000 }, (_, number) => `${number} ${'x'.repeat(number)}`);
    for (const message of messages) client.send(message);
    for (const message of messages) assert.equal(await client.read(), message);
    await client.close();
  });

  it('ends with the code that the client closes with', async () => {
    for (const code of [1000, 1001, 3000, 4999]) {
      const client = await gateway.connect('/echo');
      assert.equal((await client.close(code, 'good night')).code, code);
    }
  });

  it('ends with the code and the reason that the gateway closes with', async () => {
    const client = await gateway.connect('/echo');
    const request = { connection: client.connectionId, code: 4001, reason: 'bye' };
    assert.deepEqual(await gateway.api('disconnect', request), { result: {} });
    assert.deepEqual(await client.closed(), { code: 4001, reason: 'bye' });
  });
});
