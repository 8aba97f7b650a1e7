"""`/v1/responses`, thin: text in, text out, on record as a chat.

requests    OpenAI's request: what of it becomes a chat, is neutral, or is refused by name
answers     OpenAI's response object and its output items
events      the events of a streamed response, from the chunks of a chat
routes      the route
"""
